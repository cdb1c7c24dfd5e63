use super::*;
use crate::testing::{TestIssuer, bundle, crl_set};

fn shown(crls: &Crls) -> Vec<u64> {
    crls.shown([]).iter().map(Crl::number).collect()
}

#[test]
fn a_newer_list_replaces_the_one_held_and_an_older_one_or_another_of_the_same_number_does_not() {
    let issuer = TestIssuer::new("g1");
    let bundle = bundle(1, &[&issuer.root]);
    let mut crls = Crls::default();
    let set = |der: Vec<u8>| crl_set(&[&issuer], vec![der]);
    assert!(crls.take(&set(issuer.crl(5, 0)), &bundle).changed);
    let newer = issuer.crl(6, 1);
    assert_eq!(crls.take(&set(newer.clone()), &bundle), Taken { changed: true, refused: Vec::new() });
    assert_eq!(crls.take(&set(newer.clone()), &bundle), Taken::default(), "the same again is nothing new");
    for (bad, word) in [(issuer.crl(5, 0), "held"), (issuer.crl(6, 0), "another")] {
        let taken = crls.take(&set(bad), &bundle);
        assert!(!taken.changed && taken.refused[0].contains(word), "{taken:?}");
        assert_eq!(crls.shown([])[0].der(), newer);
    }
}

#[test]
fn a_list_that_nobody_under_the_bundle_signed_is_refused_and_costs_the_held_one_nothing() {
    let (issuer, stranger) = (TestIssuer::new("g1"), TestIssuer::new("g2"));
    let bundle = bundle(1, &[&issuer.root]);
    let mut crls = Crls::default();
    crls.take(&crl_set(&[&issuer], vec![issuer.crl(5, 0)]), &bundle);
    let mut forged = issuer.crl(6, 0);
    *forged.last_mut().unwrap() ^= 1;
    let both = crl_set(&[&issuer, &stranger], vec![forged, stranger.crl(9, 0)]);
    let taken = crls.take(&both, &bundle);
    assert_eq!(taken.refused.len(), 3, "{taken:?}");
    assert_eq!(shown(&crls), [5]);
}

#[test]
fn lists_are_handed_out_all_or_none() {
    let (one, other) = (TestIssuer::new("g1"), TestIssuer::new("g2"));
    let bundle = bundle(1, &[&one.root, &other.root]);
    let mut crls = Crls::default();
    assert!(crls.shown([]).is_empty(), "before the server said anything");
    crls.take(&crl_set(&[&one, &other], vec![one.crl(1, 1)]), &bundle);
    assert_eq!(shown(&crls), [0; 0], "an issuer is named whose list is missing");
    crls.take(&crl_set(&[&one, &other], vec![one.crl(2, 1), other.crl(2, 0)]), &bundle);
    assert_eq!(shown(&crls), [2, 2]);
}

#[test]
fn lists_are_withheld_while_this_node_serves_a_certificate_of_an_issuer_without_one() {
    let issuer = TestIssuer::new("g1");
    let mut crls = Crls::default();
    crls.take(&crl_set(&[&issuer], vec![issuer.crl(1, 0)]), &bundle(1, &[&issuer.root]));
    let known = issuer.certificate.key_identifier();
    assert_eq!(crls.shown([known]).len(), 1);
    assert_eq!(crls.shown([known, b"another".as_slice()]).len(), 0);
}

#[test]
fn lists_come_back_from_the_disk_with_their_numbers() {
    let issuer = TestIssuer::new("g1");
    let bundle = bundle(1, &[&issuer.root]);
    let mut crls = Crls::default();
    crls.take(&crl_set(&[&issuer], vec![issuer.crl(7, 3)]), &bundle);
    let text = serde_json::to_string(&crls).unwrap();
    let mut back: Crls = serde_json::from_str(&text).unwrap();
    assert_eq!(back, crls);
    assert!(!back.take(&crl_set(&[&issuer], vec![issuer.crl(6, 0)]), &bundle).changed);
}
