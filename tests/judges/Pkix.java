import java.io.ByteArrayInputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.cert.CertPath;
import java.security.cert.CertPathBuilder;
import java.security.cert.CertPathValidator;
import java.security.cert.CertStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.cert.CollectionCertStoreParameters;
import java.security.cert.PKIXBuilderParameters;
import java.security.cert.PKIXParameters;
import java.security.cert.TrustAnchor;
import java.security.cert.X509CertSelector;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;

/**
 * Judge: Java's PKIX, once validating the chain as it stands and once building a path from its pieces, for a leaf that
 * may be both a TLS client and a TLS server.
 *
 * <p>usage: java Pkix.java DIRECTORY; prints one line, "ACCEPTED facts" or "REFUSED reason".
 */
public final class Pkix {
    private static final Set<String> BOTH_ENDS = Set.of("1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2");

    public static void main(String[] arguments) throws Exception {
        Path directory = Path.of(arguments[0]);
        String verdict;
        try {
            verdict = "ACCEPTED " + judge(directory);
        } catch (GeneralSecurityException refusal) {
            verdict = "REFUSED " + refusal;
        }
        System.out.println(verdict.replace('\n', ' '));
    }

    private static String judge(Path directory) throws Exception {
        List<X509Certificate> chain = read(directory.resolve("chain.pem"));
        Set<TrustAnchor> anchors = new HashSet<>();
        for (X509Certificate root : read(directory.resolve("bundle.pem"))) {
            anchors.add(new TrustAnchor(root, null));
        }

        X509CertSelector leaf = new X509CertSelector();
        leaf.setCertificate(chain.get(0));
        leaf.setExtendedKeyUsage(BOTH_ENDS);

        PKIXParameters validation = new PKIXParameters(anchors);
        validation.setRevocationEnabled(false);
        validation.setTargetCertConstraints(leaf);
        CertPath path = CertificateFactory.getInstance("X.509").generateCertPath(chain);
        CertPathValidator.getInstance("PKIX").validate(path, validation);

        PKIXBuilderParameters building = new PKIXBuilderParameters(anchors, leaf);
        building.setRevocationEnabled(false);
        building.addCertStore(CertStore.getInstance("Collection", new CollectionCertStoreParameters(chain)));
        int built = CertPathBuilder.getInstance("PKIX").build(building).getCertPath().getCertificates().size();

        return "chain of " + chain.size() + ", built " + built + ", for " + chain.get(0).getSubjectAlternativeNames();
    }

    private static List<X509Certificate> read(Path file) throws Exception {
        List<X509Certificate> found = new ArrayList<>();
        CertificateFactory factory = CertificateFactory.getInstance("X.509");
        for (Certificate each : factory.generateCertificates(new ByteArrayInputStream(Files.readAllBytes(file)))) {
            found.add((X509Certificate) each);
        }
        return found;
    }
}
