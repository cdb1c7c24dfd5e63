//! The floor: what ring needs for one P-256 verification and one signature: on one thread of an idle machine, and on
//! one thread while every other core is as busy. Under load the server shares the machine with its clients (and virtual
//! cores share a physical one), so the second is what its CPU time can be compared with.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};

/// Medians, in µs.
pub(crate) struct Raw {
    pub(crate) verify: f64,
    pub(crate) sign: f64,
}

impl Raw {
    pub(crate) fn both(&self) -> f64 {
        self.verify + self.sign
    }
}

/// Repetitions; the median of this many leaves out whatever else the machine does.
const TIMES: usize = 4_000;

/// As [`measure`], while every other core does the same work.
pub(crate) fn measure_among_busy() -> Raw {
    let stop = AtomicBool::new(false);
    let others = std::thread::available_parallelism().map_or(1, usize::from).saturating_sub(1);
    std::thread::scope(|scope| {
        for _ in 0..others {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    measure();
                }
            });
        }
        let raw = measure();
        stop.store(true, Ordering::Relaxed);
        raw
    })
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time and needs real randomness")]
pub(crate) fn measure() -> Raw {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("a key");
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).expect("the key");
    // As long as the to-be-signed part of a leaf.
    let message = vec![0x5a; 420];
    let signature = pair.sign(&random, &message).expect("a signature");
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, pair.public_key().as_ref().to_vec());
    let verify = median(|| public.verify(&message, signature.as_ref()).expect("it verifies"));
    let sign = median(|| assert!(pair.sign(&random, &message).is_ok()));
    Raw { verify, sign }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn median(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<Duration> = (0..TIMES)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[TIMES / 2].as_secs_f64() * 1e6
}
