//! What the tests share: keys that sign anything, as only a thief of keys could, and tokens written by hand.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rhizome_id::{SpiffeId, Timestamp, TrustDomain};
use rhizome_x509::{JwtKey, KeyAlgorithm, PublicKey, RequestKey, Signature};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING,
    ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512,
    RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use serde_json::{Value, json};

use crate::algorithm::JwsAlgorithm;
use crate::token::JwtSpec;

pub(crate) const AUDIENCE: &str = "spiffe://example.org/ns/prod/sa/reports";

/// 2027-01-15T08:00:00Z.
const NOW: i64 = 1_800_000_000;

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix(NOW + seconds)
}

pub(crate) fn domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

pub(crate) fn web() -> SpiffeId {
    "spiffe://example.org/ns/prod/sa/web".parse().unwrap()
}

pub(crate) fn spec(key: &TestKey) -> JwtSpec {
    JwtSpec {
        spiffe_id: web(),
        audiences: vec![AUDIENCE.to_owned()],
        issued_at: at(0),
        expires_at: at(300),
        jti: "0001".to_owned(),
        issuer: None,
        key: key.public.clone(),
    }
}

/// The claims of a token that is accepted.
pub(crate) fn claims() -> Value {
    json!({
        "aud": [AUDIENCE],
        "exp": at(300).unix(),
        "iat": at(0).unix(),
        "jti": "0001",
        "sub": web().as_str(),
    })
}

pub(crate) fn encode(part: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

#[expect(clippy::disallowed_methods, reason = "ring takes its own source only")]
fn random() -> SystemRandom {
    SystemRandom::new()
}

/// A key whose private half is at hand.
pub(crate) struct TestKey {
    pkcs8: Vec<u8>,
    pub(crate) public: JwtKey,
}

impl TestKey {
    pub(crate) fn p256(kid: &str) -> Self {
        Self::curve(kid, KeyAlgorithm::EcdsaP256)
    }

    pub(crate) fn p384(kid: &str) -> Self {
        Self::curve(kid, KeyAlgorithm::EcdsaP384)
    }

    fn curve(kid: &str, algorithm: KeyAlgorithm) -> Self {
        let key = RequestKey::generate(algorithm).unwrap();
        let public = JwtKey::new(kid.to_owned(), key.public_key().clone(), Timestamp::MAX).unwrap();
        Self { pkcs8: key.pkcs8_der().to_vec(), public }
    }

    pub(crate) fn rsa(kid: &str) -> Self {
        let pkcs8 = include_bytes!("../testdata/rsa2048.pk8.der").to_vec();
        let public = PublicKey::from_spki_der(include_bytes!("../testdata/rsa2048.spki.der")).unwrap();
        Self { pkcs8, public: JwtKey::new(kid.to_owned(), public, Timestamp::MAX).unwrap() }
    }

    pub(crate) fn until(mut self, not_after: Timestamp) -> Self {
        let key = self.public.public_key().clone();
        self.public = JwtKey::new(self.public.kid().to_owned(), key, not_after).unwrap();
        self
    }

    /// As a key ring signs: DER.
    pub(crate) fn sign_der(&self, message: &[u8]) -> Signature {
        let curve = match self.public.public_key().algorithm() {
            KeyAlgorithm::EcdsaP256 => &ECDSA_P256_SHA256_ASN1_SIGNING,
            KeyAlgorithm::EcdsaP384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
            other @ (KeyAlgorithm::Rsa { .. } | KeyAlgorithm::Ed25519) => {
                panic!("no ring signs with {other}")
            }
        };
        let pair = EcdsaKeyPair::from_pkcs8(curve, &self.pkcs8, &random()).unwrap();
        Signature::in_process(pair.sign(&random(), message).unwrap().as_ref().to_vec())
    }

    /// As other issuers sign: any algorithm the key can do.
    fn sign_jose(&self, algorithm: JwsAlgorithm, message: &[u8]) -> Vec<u8> {
        let curve = match algorithm {
            JwsAlgorithm::Es256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            JwsAlgorithm::Es384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
            JwsAlgorithm::Rs256 => return self.sign_rsa(&RSA_PKCS1_SHA256, message),
            JwsAlgorithm::Rs384 => return self.sign_rsa(&RSA_PKCS1_SHA384, message),
            JwsAlgorithm::Rs512 => return self.sign_rsa(&RSA_PKCS1_SHA512, message),
            JwsAlgorithm::Ps256 => return self.sign_rsa(&RSA_PSS_SHA256, message),
            JwsAlgorithm::Ps384 => return self.sign_rsa(&RSA_PSS_SHA384, message),
            JwsAlgorithm::Ps512 => return self.sign_rsa(&RSA_PSS_SHA512, message),
        };
        let pair = EcdsaKeyPair::from_pkcs8(curve, &self.pkcs8, &random()).unwrap();
        pair.sign(&random(), message).unwrap().as_ref().to_vec()
    }

    fn sign_rsa(&self, padding: &'static dyn RsaEncoding, message: &[u8]) -> Vec<u8> {
        let pair = RsaKeyPair::from_pkcs8(&self.pkcs8).unwrap();
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(padding, &random(), message, &mut signature).unwrap();
        signature
    }

    /// The algorithm of this key that tests use when it does not matter.
    pub(crate) fn usual(&self) -> JwsAlgorithm {
        match self.public.public_key().algorithm() {
            KeyAlgorithm::EcdsaP256 => JwsAlgorithm::Es256,
            KeyAlgorithm::EcdsaP384 => JwsAlgorithm::Es384,
            KeyAlgorithm::Rsa { .. } | KeyAlgorithm::Ed25519 => JwsAlgorithm::Rs256,
        }
    }

    /// A token of any header and claims, well signed.
    pub(crate) fn token(&self, header: &str, claims: &str) -> String {
        self.token_by(self.usual(), header, claims)
    }

    pub(crate) fn token_by(&self, algorithm: JwsAlgorithm, header: &str, claims: &str) -> String {
        self.signed(algorithm, &format!("{}.{}", encode(header), encode(claims)))
    }

    /// A token of any two parts, well signed.
    pub(crate) fn signed(&self, algorithm: JwsAlgorithm, input: &str) -> String {
        format!("{input}.{}", encode(self.sign_jose(algorithm, input.as_bytes())))
    }

    /// A token of a usual header and these claims.
    pub(crate) fn claiming(&self, claims: &Value) -> String {
        let header = json!({ "alg": self.usual().name(), "kid": self.public.kid(), "typ": "JWT" });
        self.token(&header.to_string(), &claims.to_string())
    }
}
