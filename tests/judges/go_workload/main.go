// Judge: go-spiffe as a client of the agent's Workload API.
//
// usage: go_workload SOCKET      prints a JSON object a line for everything that it sees, until it is killed
//        go_workload fetch TRUST-DOMAIN URL ENDPOINT-ID BUNDLE-FILE      fetches a bundle by the endpoint's SVID
package main

import (
	"context"
	"crypto"
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

type facts map[string]any

var printing sync.Mutex

func say(event string, more facts) {
	more["event"] = event
	line, err := json.Marshal(more)
	if err != nil {
		panic(err)
	}
	printing.Lock()
	defer printing.Unlock()
	fmt.Println(string(line))
}

// The library's own verifier says whether the chain leads to the bundle.
func svid(it *x509svid.SVID, bundles x509bundle.Source) facts {
	leaf := it.Certificates[0]
	_, _, err := x509svid.Verify(it.Certificates, bundles)
	key, comparable := it.PrivateKey.Public().(interface{ Equal(crypto.PublicKey) bool })
	return facts{
		"id":       it.ID.String(),
		"serial":   fmt.Sprintf("%x", leaf.SerialNumber),
		"key_fits": err == nil && comparable && key.Equal(leaf.PublicKey),
	}
}

func authorities(bundles *x509bundle.Set) facts {
	found := facts{}
	for _, it := range bundles.Bundles() {
		found[it.TrustDomain().Name()] = len(it.X509Authorities())
	}
	return found
}

func tokens(ctx context.Context, client *workloadapi.Client) {
	token, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db"})
	if err != nil {
		panic(err)
	}
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		panic(err)
	}
	here, err := jwtsvid.ParseAndValidate(token.Marshal(), bundles, []string{"db"})
	if err != nil {
		panic(err)
	}
	there, err := client.ValidateJWTSVID(ctx, token.Marshal(), "db")
	if err != nil {
		panic(err)
	}
	_, elsewhere := client.ValidateJWTSVID(ctx, token.Marshal(), "mail")
	say("token", facts{
		"locally":           here.ID.String(),
		"by_agent":          there.ID.String(),
		"elsewhere_refused": elsewhere != nil,
	})
}

type watcher struct{ stop context.CancelFunc }

func (*watcher) OnX509ContextUpdate(it *workloadapi.X509Context) {
	svids := []facts{}
	for _, one := range it.SVIDs {
		svids = append(svids, svid(one, it.Bundles))
	}
	say("update", facts{"svids": svids, "authorities": authorities(it.Bundles)})
}

// The library would try again, without end.
func (w *watcher) OnX509ContextWatchError(err error) {
	say("error", facts{"fault": err.Error()})
	w.stop()
}

// As a federation peer: the bundle file is what the endpoint is known by.
func fetch(ctx context.Context, domain, url, endpoint, file string) {
	trustDomain := spiffeid.RequireTrustDomainFromString(domain)
	known, err := spiffebundle.Load(trustDomain, file)
	if err != nil {
		panic(err)
	}
	auth := federation.WithSPIFFEAuth(known.X509Bundle(), spiffeid.RequireFromString(endpoint))
	bundle, err := federation.FetchBundle(ctx, trustDomain, url, auth)
	if err != nil {
		panic(err)
	}
	sequence, _ := bundle.SequenceNumber()
	hint, _ := bundle.RefreshHint()
	say("fetched", facts{
		"sequence":        sequence,
		"roots":           len(bundle.X509Authorities()),
		"jwt_keys":        len(bundle.JWTAuthorities()),
		"refresh_seconds": int(hint.Seconds()),
	})
}

func main() {
	ctx := context.Background()
	if len(os.Args) == 6 && os.Args[1] == "fetch" {
		fetch(ctx, os.Args[2], os.Args[3], os.Args[4], os.Args[5])
		return
	}
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+os.Args[1]))
	if err != nil {
		panic(err)
	}
	first, err := client.FetchX509Context(ctx)
	if err != nil {
		panic(err)
	}
	say("svid", svid(first.DefaultSVID(), first.Bundles))
	bundles, err := client.FetchX509Bundles(ctx)
	if err != nil {
		panic(err)
	}
	say("bundles", facts{"authorities": authorities(bundles)})
	tokens(ctx, client)
	watching, stop := context.WithCancel(ctx)
	// Ends when the watcher stops it; what it then says is only that.
	_ = client.WatchX509Context(watching, &watcher{stop})
	if _, err = client.FetchX509SVID(ctx); err != nil {
		say("refused", facts{"fault": err.Error()})
	}
}
