use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DnType, DnValue, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};

use super::*;

const UID_PARTS: &[u64] = &[1, 3, 6, 1, 4, 1, 57683, 2];

struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(name: &str, until: i32) -> Authority {
    let key = KeyPair::generate().expect("a key");
    let params = authority_params(name, until);
    let certificate = params.self_signed(&key).expect("a CA");
    Authority { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
}

fn authority_params(name: &str, until: i32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(until, 1, 1));
    params
}

fn client(names: &[(DnType, DnValue)], until: i32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for (kind, value) in names {
        params.distinguished_name.push(kind.clone(), value.clone());
    }
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(until, 1, 1));
    params
}

fn signed(params: &CertificateParams, authority: &Authority) -> CertificateDer<'static> {
    let key = KeyPair::generate().expect("a key");
    params.signed_by(&key, &authority.issuer).expect("a certificate").der().clone()
}

fn utf8(text: &str) -> DnValue {
    DnValue::Utf8String(text.into())
}

fn jane() -> CertificateParams {
    client(&[(DnType::CommonName, utf8("jane")), (DnType::OrganizationName, utf8("dev"))], 2030)
}

/// The first of January.
fn year(year: i32) -> UnixTime {
    let seconds = u64::try_from(date_time_ymd(year, 1, 1).unix_timestamp()).expect("after 1970");
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn trust_at(
    authorities: &[&Authority],
    revocations: Option<Vec<u8>>,
    now: UnixTime,
) -> Result<Arc<ClientTrust>, TrustError> {
    let authorities: String = authorities.iter().map(|authority| authority.pem.as_str()).collect();
    ClientTrust::new(ClientTrustSettings { authorities: authorities.into_bytes(), revocations }, now)
}

fn trust(authorities: &[&Authority]) -> Arc<ClientTrust> {
    trust_at(authorities, None, year(2025)).expect("trust")
}

#[test]
fn the_subject_names_the_user_as_in_kube_apiserver() {
    let ca = authority("ca", 2040);
    let params = client(
        &[
            (DnType::OrganizationName, utf8("system:masters")),
            (DnType::CommonName, utf8("jane")),
            (DnType::CustomDnType(UID_PARTS.to_vec()), utf8("4711")),
        ],
        2030,
    );
    let leaf = signed(&params, &ca);
    let certificate = ClientCertificate::new(Some(std::slice::from_ref(&leaf))).expect("there is one");
    let user = certificate.user(&trust(&[&ca]), year(2025)).expect("accepted").expect("named");
    let hash: String = digest(&SHA256, &leaf).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = User {
        name: "jane".into(),
        uid: "4711".into(),
        groups: vec!["system:masters".into(), "system:authenticated".into()],
        extra: vec![(CREDENTIAL_ID.into(), vec![format!("X509SHA256={hash}")])],
    };
    assert_eq!(*user, expected);
}

#[test]
fn a_subject_that_names_nobody_or_two_is_no_user() {
    let ca = authority("ca", 2040);
    let trust = trust(&[&ca]);
    let user = |names: &[(DnType, DnValue)]| {
        let leaf = signed(&client(names, 2030), &ca);
        let certificate = ClientCertificate::new(Some(&[leaf])).expect("there is one");
        certificate.user(&trust, year(2025)).map(|user| user.map(|user| user.name.clone()))
    };
    let (name, group) = (|value| (DnType::CommonName, value), |value| (DnType::OrganizationName, value));
    let uid = |text: &str| (DnType::CustomDnType(UID_PARTS.to_vec()), utf8(text));
    assert_eq!(user(&[group(utf8("dev"))]), Ok(None));
    assert_eq!(user(&[name(utf8(""))]), Ok(None));
    assert_eq!(user(&[name(utf8("jane")), uid("")]), Err(CertificateError::Uid));
    let bmp = DnValue::BmpString("jane".try_into().expect("it has no other characters"));
    assert_eq!(user(&[name(bmp)]), Err(CertificateError::Name("common name")));
    assert!(ClientCertificate::new(None).is_none() && ClientCertificate::new(Some(&[])).is_none());
}

#[test]
fn a_certificate_ends_on_a_connection_that_goes_on() {
    let ca = authority("ca", 2040);
    let trust = trust(&[&ca]);
    let chain = [signed(&jane(), &ca)];
    for certificate in [
        ClientCertificate::new(Some(&chain)).expect("there is one"),
        ClientCertificate::verified(Some(&chain), &trust, year(2025)).expect("there is one"),
    ] {
        for _ in 0..2 {
            certificate.user(&trust, year(2029)).expect("accepted").expect("named");
        }
        for _ in 0..2 {
            certificate.user(&trust, year(2031)).expect_err("it ended in 2030");
        }
    }
}

#[test]
fn a_changed_authority_is_asked_at_the_next_request() {
    let (old, new) = (authority("old", 2040), authority("new", 2040));
    let chain = [signed(&jane(), &old)];
    let certificate = ClientCertificate::verified(Some(&chain), &trust(&[&old]), year(2025)).expect("there is one");
    let both = trust(&[&old, &new]);
    certificate.user(&both, year(2025)).expect("accepted");
    let only_new = trust(&[&new]);
    let error = certificate.user(&only_new, year(2025)).expect_err("unknown now");
    assert!(matches!(error, CertificateError::NotAccepted(_)), "{error}");
    certificate.user(&both, year(2025)).expect("and back");
}

#[test]
fn a_handshake_that_resumed_says_nothing_of_the_certificate() {
    let (old, new) = (authority("old", 2040), authority("new", 2040));
    let chain = [signed(&jane(), &old)];
    let certificate = ClientCertificate::new(Some(&chain)).expect("there is one");
    certificate.user(&trust(&[&new]), year(2025)).expect_err("never verified");
}

fn revocation_list(authority: &Authority, serial: u64) -> Vec<u8> {
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(2024, 2, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(&authority.issuer).expect("a list").der().to_vec()
}

#[test]
fn revoked_certificates_are_refused_on_open_connections_too() {
    let (ca, other_ca) = (authority("ca", 2040), authority("other", 2040));
    let certificate = |serial: u64, authority: &Authority| {
        let mut params = jane();
        params.serial_number = Some(SerialNumber::from(serial));
        ClientCertificate::new(Some(&[signed(&params, authority)])).expect("there is one")
    };
    let (bad, good, other) = (certificate(66, &ca), certificate(67, &ca), certificate(66, &other_ca));
    let before = trust(&[&ca, &other_ca]);
    for certificate in [&bad, &good, &other] {
        certificate.user(&before, year(2025)).expect("nothing is revoked yet");
    }
    let list = revocation_list(&ca, 66);
    let after = trust_at(&[&ca, &other_ca], Some(list), year(2025)).expect("trust");
    bad.user(&after, year(2025)).expect_err("revoked");
    good.user(&after, year(2025)).expect("not revoked");
    other.user(&after, year(2025)).expect("of another authority, which has no list");
}

#[test]
fn a_revoked_authority_between_revokes_its_clients() {
    let root = authority("root", 2040);
    let mut params = authority_params("between", 2040);
    params.serial_number = Some(SerialNumber::from(66_u64));
    let key = KeyPair::generate().expect("a key");
    let between = params.signed_by(&key, &root.issuer).expect("a CA");
    let between = Authority { pem: between.pem(), der: between.der().clone(), issuer: Issuer::new(params, key) };
    let chain = [signed(&jane(), &between), between.der.clone()];
    still_valid(&chain, &trust(&[&root]), year(2025)).expect("accepted");
    still_valid(&chain[..1], &trust(&[&root]), year(2025)).expect_err("a certificate is missing");
    let revoking = trust_at(&[&root], Some(revocation_list(&root, 66)), year(2025)).expect("trust");
    still_valid(&chain, &revoking, year(2025)).expect_err("revoked");
}

#[test]
fn certificates_for_servers_are_no_client_certificates() {
    let ca = authority("ca", 2040);
    let mut params = jane();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    still_valid(&[signed(&params, &ca)], &trust(&[&ca]), year(2025)).expect_err("for servers");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    still_valid(&[signed(&params, &ca)], &trust(&[&ca]), year(2025)).expect("for clients");
    still_valid(&[], &trust(&[&ca]), year(2025)).expect_err("there is none");
}

#[test]
fn an_expired_authority_vouches_for_nobody() {
    let (expired, ca) = (authority("expired", 2022), authority("ca", 2040));
    let error = trust_at(&[&expired], None, year(2025)).expect_err("nobody is left");
    assert_eq!(error, TrustError::Expired);
    let trust = trust_at(&[&expired, &ca], None, year(2025)).expect("one is left");
    still_valid(&[signed(&jane(), &expired)], &trust, year(2025)).expect_err("its authority has expired");
    still_valid(&[signed(&jane(), &ca)], &trust, year(2025)).expect("of the other");
}

#[test]
fn authorities_and_lists_that_can_not_be_read_are_named() {
    let ca = authority("ca", 2040);
    let new = |authorities: &[u8], revocations: Option<&[u8]>| {
        let settings =
            ClientTrustSettings { authorities: authorities.to_vec(), revocations: revocations.map(<[u8]>::to_vec) };
        ClientTrust::new(settings, year(2025)).expect_err("unusable").to_string()
    };
    assert!(new(b"", None).contains("client CA: there is no certificate"));
    assert!(new(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", None).contains("client CA"));
    assert!(new(ca.pem.as_bytes(), Some(b"")).contains("client CRL: there is no list"));
    assert!(new(ca.pem.as_bytes(), Some(b"\x30\x00")).contains("client CRL"));
}

#[test]
fn an_unknown_critical_extension_is_not_passed_over() {
    let ca = authority("ca", 2040);
    let mut params = jane();
    let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
    extension.set_criticality(true);
    params.custom_extensions.push(extension);
    still_valid(&[signed(&params, &ca)], &trust(&[&ca]), year(2025)).expect_err("not understood");
}
