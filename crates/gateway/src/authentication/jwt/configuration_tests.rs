use super::*;

const GOOD: &str = r#"
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer:
    url: https://issuer.example.com/realm/
    audiences: [kubernetes, gateway]
    audienceMatchPolicy: MatchAny
  claimValidationRules:
  - claim: hd
    requiredValue: example.com
  claimMappings:
    username: {claim: sub, prefix: "oidc:"}
    groups: {claim: groups, prefix: ""}
    uid: {claim: sub}
    extra:
    - {key: example.org/tenant, valueExpression: claims.tenant.id}
    - {key: example.org/origin, valueExpression: "'oidc'"}
    - {key: example.org/team, claim: team, prefix: "t-"}
- issuer:
    url: https://other.example.com
    discoveryURL: https://10.0.0.1:8443/discovery
    audiences: [a]
  claimMappings:
    username: {claim: email, prefix: ""}
anonymous:
  enabled: true
  conditions: [{path: /readyz}]
"#;

fn parse(text: &str) -> Result<AuthenticationConfiguration, String> {
    AuthenticationConfiguration::parse(text, "file.yaml").map_err(|error| error.to_string())
}

#[test]
fn a_file_of_kubernetes_is_understood() {
    let mapping = |claim: &str, prefix: &str| ClaimMapping { claim: claim.into(), prefix: prefix.into() };
    let extra = |key: &str, source| ExtraMapping { key: key.into(), source };
    let expected = AuthenticationConfiguration {
        issuers: vec![
            IssuerSettings {
                url: "https://issuer.example.com/realm/".into(),
                discovery_url: "https://issuer.example.com/realm/.well-known/openid-configuration".into(),
                certificate_authority: None,
                audiences: vec!["kubernetes".into(), "gateway".into()],
                username: mapping("sub", "oidc:"),
                groups: Some(mapping("groups", "")),
                uid: Some("sub".into()),
                extra: vec![
                    extra("example.org/tenant", ExtraSource::Path(vec!["tenant".into(), "id".into()])),
                    extra("example.org/origin", ExtraSource::Literal("oidc".into())),
                    extra("example.org/team", ExtraSource::Claim { claim: "team".into(), prefix: "t-".into() }),
                ],
                required_claims: vec![("hd".into(), "example.com".into())],
            },
            IssuerSettings {
                url: "https://other.example.com".into(),
                discovery_url: "https://10.0.0.1:8443/discovery".into(),
                certificate_authority: None,
                audiences: vec!["a".into()],
                username: mapping("email", ""),
                groups: None,
                uid: None,
                extra: vec![],
                required_claims: vec![],
            },
        ],
        anonymous: Some(AnonymousSettings { enabled: true, paths: vec!["/readyz".into()] }),
    };
    assert_eq!(parse(GOOD), Ok(expected.clone()));
    assert_eq!(parse(&GOOD.replace("k8s.io/v1", "k8s.io/v1beta1")), Ok(expected));
    let nothing = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n";
    assert_eq!(parse(nothing), Ok(AuthenticationConfiguration { issuers: vec![], anonymous: None }));
}

#[test]
fn what_is_wrong_or_not_supported_is_named_by_its_field() {
    for (old, new, field, problem) in [
        ("AuthenticationConfiguration", "Config", "kind", "must be"),
        ("k8s.io/v1", "k8s.io/v1alpha1", "apiVersion", "must be"),
        ("https://issuer", "http://issuer", "jwt[0].issuer.url", "https"),
        ("https://issuer", "https://a:b@issuer", "jwt[0].issuer.url", "password"),
        ("/realm/", "/realm?a=b", "jwt[0].issuer.url", "query"),
        ("/realm/", "/realm#a", "jwt[0].issuer.url", "fragment"),
        ("https://issuer.example.com/realm/", "not a url", "jwt[0].issuer.url", "no URL"),
        ("https://other.example.com", "https://issuer.example.com/realm/", "jwt[1].issuer.url", "another issuer"),
        ("https://10.0.0.1:8443/discovery", "https://other.example.com/", "jwt[1].issuer.discoveryURL", "differ"),
        (
            "https://10.0.0.1:8443/discovery",
            "https://issuer.example.com/realm/.well-known/openid-configuration",
            "jwt[1].issuer.discoveryURL",
            "another issuer",
        ),
        ("[kubernetes, gateway]", "[]", "jwt[0].issuer.audiences", "at least one"),
        ("[kubernetes, gateway]", "[a, a]", "jwt[0].issuer.audiences[1]", "twice"),
        ("[kubernetes, gateway]", "['']", "jwt[0].issuer.audiences[0]", "empty"),
        ("    audienceMatchPolicy: MatchAny\n", "", "jwt[0].issuer.audienceMatchPolicy", "MatchAny"),
        ("MatchAny", "MatchAny\n    egressSelectorType: cluster", "jwt[0].issuer.egressSelectorType", "remove it"),
        ("MatchAny", "MatchAny\n    certificateAuthority: x", "jwt[0].issuer.certificateAuthority", "PEM"),
        ("{claim: sub, prefix: \"oidc:\"}", "{claim: sub}", "jwt[0].claimMappings.username.prefix", "required"),
        ("{claim: sub, prefix: \"oidc:\"}", "{}", "jwt[0].claimMappings.username.claim", "required"),
        (
            "{claim: sub, prefix: \"oidc:\"}",
            "{expression: claims.sub}",
            "jwt[0].claimMappings.username.expression",
            "CEL",
        ),
        ("{claim: groups, prefix: \"\"}", "{claim: groups}", "jwt[0].claimMappings.groups.prefix", "required"),
        ("{claim: groups, prefix: \"\"}", "{prefix: x}", "jwt[0].claimMappings.groups.prefix", "without claim"),
        ("{claim: groups, prefix: \"\"}", "{expression: x}", "jwt[0].claimMappings.groups.expression", "CEL"),
        ("uid: {claim: sub}", "uid: {expression: x}", "jwt[0].claimMappings.uid.expression", "CEL"),
        ("uid: {claim: sub}", "uid: {claim: sub, prefix: x}", "jwt[0].claimMappings.uid.prefix", "no prefix"),
        ("claims.tenant.id", "claims.tenant.id + 'x'", "jwt[0].claimMappings.extra[0].valueExpression", "CEL"),
        ("claims.tenant.id", "claims.a__dot__b", "jwt[0].claimMappings.extra[0].valueExpression", "CEL"),
        ("claims.tenant.id", "user.x", "jwt[0].claimMappings.extra[0].valueExpression", "CEL"),
        ("claims.tenant.id", "claims.", "jwt[0].claimMappings.extra[0].valueExpression", "CEL"),
        ("\"'oidc'\"", "\"'a' + 'b'\"", "jwt[0].claimMappings.extra[1].valueExpression", "CEL"),
        ("claims.tenant.id}", "claims.a, claim: a}", "jwt[0].claimMappings.extra[0].valueExpression", "together"),
        ("claims.tenant.id}", "claims.a, prefix: a}", "jwt[0].claimMappings.extra[0].prefix", "without claim"),
        ("claim: team, ", "", "jwt[0].claimMappings.extra[2].valueExpression", "required"),
        ("example.org/tenant", "tenant", "jwt[0].claimMappings.extra[0].key", "domain"),
        ("example.org/tenant", "example.org/Tenant", "jwt[0].claimMappings.extra[0].key", "lower case"),
        ("example.org/tenant", "a.k8s.io/tenant", "jwt[0].claimMappings.extra[0].key", "for Kubernetes"),
        ("example.org/tenant", "kubernetes.io/tenant", "jwt[0].claimMappings.extra[0].key", "for Kubernetes"),
        ("example.org/tenant", "example.org/", "jwt[0].claimMappings.extra[0].key", "path"),
        ("example.org/tenant", "-a.org/x", "jwt[0].claimMappings.extra[0].key", "domain"),
        ("example.org/tenant", "example.org/team", "jwt[0].claimMappings.extra[2].key", "another extra"),
        (
            "- claim: hd\n    requiredValue: example.com",
            "- expression: claims.hd == 'x'",
            "jwt[0].claimValidationRules[0].expression",
            "CEL",
        ),
        ("requiredValue: example.com", "message: no", "jwt[0].claimValidationRules[0].message", "for expressions"),
        ("  - claim: hd", "  - claim: hd\n  - claim: hd", "jwt[0].claimValidationRules[1].claim", "another rule"),
        ("  - claim: hd\n", "  - ", "jwt[0].claimValidationRules[0].claim", "required"),
        (
            "  claimValidationRules:",
            "  userValidationRules: [{expression: 'true'}]\n  claimValidationRules:",
            "jwt[0].userValidationRules",
            "CEL",
        ),
        ("enabled: true", "enabled: false", "anonymous.conditions", "unless enabled"),
    ] {
        assert!(GOOD.contains(old), "{old}");
        let error = parse(&GOOD.replacen(old, new, 1)).expect_err(&format!("{old} -> {new}"));
        let beginning = format!("authentication configuration file.yaml: {field}: ");
        assert!(error.starts_with(&beginning) && error.contains(problem), "{old} -> {new}: {error}");
    }
}

#[test]
fn what_is_no_such_file_is_told_with_its_line() {
    for (old, new) in [
        ("audiences: [a]", "audience: [a]"),
        ("enabled: true", "enabled: perhaps"),
        ("kind: AuthenticationConfiguration", ""),
        ("jwt:", "jwt: ["),
    ] {
        let error = parse(&GOOD.replacen(old, new, 1)).expect_err(new);
        assert!(error.contains("file.yaml: ") && error.contains("line"), "{error}");
    }
    let path = Path::new("/nonexistent/file.yaml");
    let error = AuthenticationConfiguration::read(path).expect_err("it is not there").to_string();
    assert!(error.contains("/nonexistent/file.yaml"), "{error}");
}

#[test]
fn more_issuers_than_kube_apiserver_takes_are_refused() {
    let issuer = |number: usize| {
        format!(
            "- issuer: {{url: 'https://i{number}.example.com', audiences: [a]}}\n  \
             claimMappings: {{username: {{claim: sub, prefix: ''}}}}\n"
        )
    };
    let file = |count: usize| {
        let issuers: String = (0..count).map(issuer).collect();
        parse(&format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n{issuers}"))
    };
    assert_eq!(file(JWT_ISSUERS_MAX).expect("as many as are allowed").issuers.len(), JWT_ISSUERS_MAX);
    assert!(file(JWT_ISSUERS_MAX + 1).expect_err("one more").contains("jwt: "));
}
