// Judge: Go's crypto/x509, for a leaf that may be both a TLS client and a TLS server.
//
// usage: go run . DIRECTORY          judges chain.pem against bundle.pem
//        go run . DIRECTORY crl      judges crl.pem, signed by the second certificate of chain.pem
//
// prints one line, "ACCEPTED <facts>" or "REFUSED <reason>"
package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	ask := judge
	if len(os.Args) > 2 && os.Args[2] == "crl" {
		ask = judgeList
	}
	facts, refusal := ask(os.Args[1])
	if refusal != nil {
		fmt.Println("REFUSED", strings.ReplaceAll(refusal.Error(), "\n", " "))
		return
	}
	fmt.Println("ACCEPTED", facts)
}

func judge(directory string) (string, error) {
	chain, err := read(filepath.Join(directory, "chain.pem"))
	if err != nil {
		return "", err
	}
	anchors, err := read(filepath.Join(directory, "bundle.pem"))
	if err != nil {
		return "", err
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, anchor := range anchors {
		roots.AddCert(anchor)
	}
	for _, intermediate := range chain[1:] {
		intermediates.AddCert(intermediate)
	}
	// Verify asks for any of the usages it is given; both ends are wanted, so it is asked twice.
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		options := x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}}
		if _, err := chain[0].Verify(options); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("chain of %d for %v", len(chain), chain[0].URIs), nil
}

func judgeList(directory string) (string, error) {
	chain, err := read(filepath.Join(directory, "chain.pem"))
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(directory, "crl.pem"))
	if err != nil {
		log.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "X509 CRL" {
		log.Fatal("crl.pem: no revocation list")
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		return "", err
	}
	if err := list.CheckSignatureFrom(chain[1]); err != nil {
		return "", err
	}
	listed := false
	for _, entry := range list.RevokedCertificateEntries {
		listed = listed || entry.SerialNumber.Cmp(chain[0].SerialNumber) == 0
	}
	return fmt.Sprintf("number %v entries %d leaf listed %v", list.Number, len(list.RevokedCertificateEntries), listed), nil
}

// read parses every certificate of a PEM file. A file that cannot be read is the caller's mistake and no verdict.
func read(file string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		log.Fatal(err)
	}
	var found []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		found = append(found, certificate)
	}
	if len(found) == 0 {
		log.Fatalf("%s: no certificate", file)
	}
	return found, nil
}
