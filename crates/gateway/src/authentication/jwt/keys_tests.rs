use proptest::prelude::*;

use super::*;

/// RFC 7515, appendix A.2: RS256.
const RSA_KEY: &str = r#"{"kty":"RSA","kid":"rsa","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#;
const RSA_MESSAGE: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
const RSA_SIGNATURE: &str = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
/// RFC 7515, appendix A.3: ES256.
const EC_KEY: &str = r#"{"kty":"EC","kid":"ec","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
const EC_MESSAGE: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
const EC_SIGNATURE: &str = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
/// RFC 8037, appendix A.
const ED_KEY: &str = r#"{"kty":"OKP","kid":"ed","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
const ED_MESSAGE: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
const ED_SIGNATURE: &str = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";

fn set(keys: &[&str]) -> Result<KeySet, KeySetError> {
    KeySet::parse(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes())
}

#[test]
fn the_signatures_of_the_rfcs_verify_by_their_keys_and_no_others() {
    let set = set(&[RSA_KEY, EC_KEY, ED_KEY]).expect("keys");
    let cases = [
        ("rsa", Algorithm::Rs256, RSA_MESSAGE, RSA_SIGNATURE),
        ("ec", Algorithm::Es256, EC_MESSAGE, EC_SIGNATURE),
        ("ed", Algorithm::EdDsa, ED_MESSAGE, ED_SIGNATURE),
    ];
    for (id, algorithm, message, signature) in cases {
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        let verify = |id, algorithm, message: &str| set.verify(algorithm, id, message.as_bytes(), &signature);
        assert_eq!(verify(Some(id), algorithm, message), Verification::Good);
        assert_eq!(verify(None, algorithm, message), Verification::Good);
        assert_eq!(verify(Some("other"), algorithm, message), Verification::NoKey);
        assert_eq!(verify(Some(id), algorithm, &message[1..]), Verification::Bad);
        for (other, of_other, ..) in cases.iter().filter(|(other, ..)| *other != id) {
            assert_eq!(verify(Some(other), algorithm, message), Verification::NoKey);
            assert_eq!(verify(Some(id), *of_other, message), Verification::NoKey);
        }
    }
}

#[test]
fn a_key_that_names_an_algorithm_is_for_no_other() {
    let named = RSA_KEY.replace(r#""kty""#, r#""alg":"RS512","kty""#);
    let set = set(&[&named]).expect("a key");
    let signature = URL_SAFE_NO_PAD.decode(RSA_SIGNATURE).expect("base64");
    assert_eq!(set.verify(Algorithm::Rs256, None, RSA_MESSAGE.as_bytes(), &signature), Verification::NoKey);
}

#[test]
fn keys_of_no_use_are_left_out_and_a_set_of_them_is_told() {
    let useless = [
        // What would make a public key a shared secret.
        r#"{"kty":"oct","alg":"HS256","k":"AAAA"}"#.to_owned(),
        RSA_KEY.replace(r#""kty""#, r#""alg":"HS256","kty""#),
        RSA_KEY.replace(r#""kty""#, r#""use":"enc","kty""#),
        RSA_KEY.replace(r#""kty""#, r#""key_ops":["encrypt"],"kty""#),
        r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPd","e":"AQAB"}"#.to_owned(),
        EC_KEY.replace("P-256", "P-521"),
        EC_KEY.replace("P-256", "P-384"),
        ED_KEY.replace("Ed25519", "X25519"),
        r#"{"kty":7}"#.to_owned(),
        "null".to_owned(),
    ];
    let useless: Vec<&str> = useless.iter().map(String::as_str).collect();
    assert_eq!(set(&useless).expect_err("none is good"), KeySetError::Useless(useless.len()));
    let mut with_one = useless;
    with_one.push(ED_KEY);
    assert_eq!(set(&with_one).expect("one is good").keys.len(), 1);
    assert!(matches!(KeySet::parse(b"{}"), Err(KeySetError::Malformed(_))));
    assert!(["none", "HS256", "HS512", "ES512", "rs256", ""].iter().all(|name| Algorithm::named(name).is_none()));
}

/// A key of 2048 bits, and signatures by it that another implementation made of `message`.
const RSA_MODULUS: &str = "rSRNX-TixJ0a5es3IJJIaj2MKpZMrDK7THn5gvZQOAvzEDo_g22LAL6bQ5iWIuBWXNr-QqRpIfbzZx00I4w4FZecLIwkpcxyzPQxRxJJlhxRwwgbogvpQlMmzl6wsyWNsxIMymJmCE4di2yU2euZidHmUWON7EZBwdj5RGSCVNmvPWUu8g_bu9t4OD5Bb9LKb9phUZksAGsPAvZcr7exIeoiIONAwB3qGAC1lD7zs50YD9D92sZTDlK7IMJ3zDiqu5MVpKErG6R949-lYRshTyGEi4fw6m-Xqrms3CMj1nA99BTjFK8v4ybh6gbSifxv4nV_fwHQOugIveHBMSl0Pw";
const RSA_SIGNATURES: [(Algorithm, &str); 6] = [
    (
        Algorithm::Rs256,
        "aTmW0CkwTQQ3kMEsfznF7OdjhzDEBp6wOWDIKA6z74yHO3ouR5br4RWMu-SabY84GTIf0j8PrrUWFiKsyeWGeoeXDle-28ZqeGtSZo4Ld1xiCYvNe9uIXaMUaLqinYehDbnIhGMlIbgbo3-c_tSQ4l71rbw6X382QEZg08kEIac2yT07oeaQLjOF9c2ZIhunzVRExVXvo5BauTY4lnJD5nsWWioH1kgUivQF0ACM971QrCn99vkpGtwa850oph9QYgwrWE5DuozZN-e5d0AAclEBV-1pzht1Xz92B-SA5B8fy2wwrSTdIJBXOHkae-ctTKHpVqpxOYxSXRXRuuMmyQ",
    ),
    (
        Algorithm::Ps256,
        "psL52Ikp5JVs8nthqkkTHyaeQgko0aB68IsXhVtiWD3fuhGfdDmbfQfbxswBasj4feltOG1C0NQxNjH-04knjKPQGF3qx2gJlqZONS09-In-Of3VRv1soxkGbchkLCHrrM1BNgOtZlsFu7O0Tpwb0DJj7t2ToiGC1Tv0awwqUEF39vmxvAB6mWmotVP_315RctWdCZYpYyDGkGiyst3i8Y63btsxTwNMTxKjaYP38X0CdGaI0UyplSDAZei_p5_Ta8sjX4v6dxs0FTrwT_s-8uLOu-P7o-gPbBsWxXr4DTgFfQdsTVcbPypeIgsBW6LBlOmsDtjDFrUOirezA6SL9A",
    ),
    (
        Algorithm::Rs384,
        "GQ4pu_eq1xbF-iXiDNnwzla_tZXbScZpBTDk_kd5h7NrPx40ReppObKZrAuXdx7K92CeaSFeCAxzJ0R16YdVe1pEWpqm5ATQUcGq9c82n5Fc0YW4G-XFjIJNqpxbQnp41hyg-Pq7ZiIZH6ze1Fapf6iaOvVtl1S1Mx2KX5NdPKpGpPEtzYv7hfmeedOfb60nAL8fSleWNFJ5Yl11ETg9Kbd40lLhvQ6Y_jkFF7gUGZppVS1e_Tkb8FV7C71HnTuwNUL-bP0g372m1jzpuH0nCwxzIqWFy8JNfPL_oLdSGB8_q2B_1N2hX-w308skyFxpaPHCNh9RND8NKJ2px8JCGA",
    ),
    (
        Algorithm::Ps384,
        "mHKaBJpOxOu0GEeNVYhENoeOI00FIURrigGTJyLZ_YOoZHwbBPtfePig2BVeA5X6SZUAGNepqckvFNxjCFRl-_xgU9YR47EsdQXGdruU-1AimmSCTvaLru0CGbVCJzW39yMuXNMWUwnZLIq_ltt9D9DLn8v3oG_2_BeZcAj06Ao8pnNuMZD5L2lnAM9J0QR-DKt3KM1d2dXNjodRaPe1KrzRa9ybxpLsZiudH6tvyune4HCwJPa4Ak1ikKD_wpsS_rWG8LsZzliMJV_Jcvk5bJHqSazmbUha-USrmQ-gjUz4E9ZbqejXS85l3Mxg114Aslo6e3y9eADACHCG_fBRjQ",
    ),
    (
        Algorithm::Rs512,
        "UOiaahUiYHcYkNxZaST84PNTzT7Y5-NIucNq2xggQc2K_EmbpjWJB57jdMndL6_hJHzm20q9uva2UAMc_XpDRJkmyV_IUsIbCjfdmOEfHNGDqylHKjPaZMZdYzS-O3e0CvCD11j-1YbLOd81NyVLpkFAdiIY5_NrAqfLJ55NwD4MWTd_sJuY06sXgE45exFg-WeMy_biN7tX1XlqWfNzCL4CX3xzsHSyX_rXomOQtmyLcB8boOYMbBH07w-xyKDs-3XAPbUjpo6QtAI8jOOXtJeHmlwhey9cxr4CjGoSfTom3ZdAgblN6p6oQ6vOo9jMYY_N3YBWnN28omd4jQUIcA",
    ),
    (
        Algorithm::Ps512,
        "fewqAIxRw0fRvSBA0BaFDlSCT6YND7xHMwhoaamlx34EtDaRsBwoczqu3x4Az_xA4S-fz6v_TEhSf94C_zbwmrR_l30Gh59u7iYAj8xwFOX2EWwFSi8ImBj96ZSR-IfwtX63hkFJgGGtgUarJYzJ7q6ngd_0s2PcE-KqEd3oXuqqtDXsyMkRBrdYbaW1ZTV2whtJZpkI_DYLnHzm90zL0nv4DyZymLZ5Z21yTXwdnoq7liKaahBc72FH4xZTzLXgl-jcv0E5nzwcQ9awx0NzGtHDHvOhlLf-3skRfqSiuIuIYs4DASYEjcTwU-YbzQtVWDk8dAlldfwTDso2ZYSkjg",
    ),
];

#[test]
fn each_rsa_signature_verifies_by_its_own_algorithm_alone() {
    let key = format!(r#"{{"kty":"RSA","n":"{RSA_MODULUS}","e":"AQAB"}}"#);
    let set = set(&[&key]).expect("a key");
    for (of_signature, signature) in RSA_SIGNATURES {
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        for (algorithm, _) in RSA_SIGNATURES {
            let expected = if algorithm == of_signature { Verification::Good } else { Verification::Bad };
            assert_eq!(set.verify(algorithm, None, b"message", &signature), expected, "{of_signature:?} {algorithm:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_document_and_no_signature_makes_it_fail(
        document in proptest::collection::vec(any::<u8>(), 0..200), signature in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let _ = KeySet::parse(&document);
        let set = set(&[RSA_KEY, EC_KEY, ED_KEY]).expect("keys");
        for algorithm in [Algorithm::Rs256, Algorithm::Ps384, Algorithm::Es256, Algorithm::EdDsa] {
            prop_assert_eq!(set.verify(algorithm, None, b"message", &signature), Verification::Bad);
        }
    }
}
