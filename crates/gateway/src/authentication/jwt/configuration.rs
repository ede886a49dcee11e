//! Kubernetes' `AuthenticationConfiguration`, of `apiserver.config.k8s.io/v1` and `v1beta1`: the file that
//! kube-apiserver takes with `--authentication-config`.
//!
//! Invariant: a file that passes says the same here as it does there. What is not supported (CEL, except as
//! [`ExtraSource`] tells; egress selectors) is an error that names its field, and is never passed over. The one
//! addition is `claim` and `prefix` of an extra.

use std::collections::HashSet;
use std::path::Path;

use http::Uri;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

use crate::authentication::AnonymousSettings;
use crate::limits::JWT_ISSUERS_MAX;

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// It can't be read.
    #[error("authentication configuration {file}: {source}")]
    File {
        /// Which.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is not YAML of that shape. The text tells the line.
    #[error("authentication configuration {file}: {problem}")]
    Shape {
        /// Which.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// A field is wrong.
    #[error("authentication configuration {file}: {field}: {problem}")]
    Field {
        /// Which file.
        file: String,
        /// Which field, as in `jwt[0].issuer.url`.
        field: String,
        /// What is wrong, and the way out.
        problem: String,
    },
}

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticationConfiguration {
    /// The issuers, in the file's order. No two have the same URL.
    pub issuers: Vec<IssuerSettings>,
    /// Requests without credentials, if the file says anything of them.
    pub anonymous: Option<AnonymousSettings>,
}

/// Whom to believe what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerSettings {
    /// The issuer: what tokens and discovery must say.
    pub url: String,
    /// Where its discovery document is.
    pub discovery_url: String,
    /// PEM: whom to trust when documents are got; `None` means the system's authorities.
    pub certificate_authority: Option<String>,
    /// A token must be for one of these.
    pub audiences: Vec<String>,
    /// The user's name.
    pub username: ClaimMapping,
    /// The user's groups; `None` means none.
    pub groups: Option<ClaimMapping>,
    /// The claim that is the user's UID; `None` means none.
    pub uid: Option<String>,
    /// The user's extras.
    pub extra: Vec<ExtraMapping>,
    /// Claims and the values that they must have.
    pub required_claims: Vec<(String, String)>,
}

/// A claim, and what is put in front of its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimMapping {
    /// The claim's name.
    pub claim: String,
    /// Put in front of each value.
    pub prefix: String,
}

/// An extra of the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraMapping {
    /// Its key.
    pub key: String,
    /// Where its values are from.
    pub source: ExtraSource,
}

/// Where the values of an extra are from. Empty values are left out, and so is an extra without values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtraSource {
    /// A claim that is a string or an array of strings; if it is not there, neither is the extra. Not known to
    /// kube-apiserver.
    Claim {
        /// The claim's name.
        claim: String,
        /// Put in front of each value.
        prefix: String,
    },
    /// The expression `claims.a` or `claims.a.b`: a claim, or a part of one, that must be there.
    Path(Vec<String>),
    /// The expression `'text'`.
    Literal(String),
}

impl AuthenticationConfiguration {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// If it can't be read, or something in it is wrong or not supported.
    pub fn read(path: &Path) -> Result<Self, ConfigurationError> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, &file),
            Err(source) => Err(ConfigurationError::File { file, source }),
        }
    }

    /// Reads the text of a file, whose name is for errors.
    ///
    /// # Errors
    ///
    /// If something in it is wrong or not supported.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigurationError> {
        let document: Document = serde_saphyr::from_str(text)
            .map_err(|error| ConfigurationError::Shape { file: file.to_owned(), problem: error.to_string() })?;
        document.check().map_err(|Wrong { field, problem }| ConfigurationError::Field {
            file: file.to_owned(),
            field,
            problem,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    api_version: String,
    kind: String,
    #[serde(default)]
    jwt: Option<Vec<JwtAuthenticator>>,
    anonymous: Option<Anonymous>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Anonymous {
    enabled: bool,
    #[serde(default)]
    conditions: Vec<AnonymousCondition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnonymousCondition {
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct JwtAuthenticator {
    issuer: Issuer,
    #[serde(default)]
    claim_validation_rules: Vec<ClaimValidationRule>,
    claim_mappings: ClaimMappings,
    #[serde(default)]
    user_validation_rules: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Issuer {
    url: String,
    #[serde(rename = "discoveryURL")]
    discovery_url: Option<String>,
    #[serde(rename = "certificateAuthority", default)]
    certificate_authority: String,
    #[serde(default)]
    audiences: Vec<String>,
    #[serde(rename = "audienceMatchPolicy", default)]
    audience_match_policy: String,
    #[serde(rename = "egressSelectorType", default)]
    egress_selector_type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClaimValidationRule {
    #[serde(default)]
    claim: String,
    #[serde(default)]
    required_value: String,
    #[serde(default)]
    expression: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClaimMappings {
    username: ClaimOrExpression,
    #[serde(default)]
    groups: ClaimOrExpression,
    #[serde(default)]
    uid: ClaimOrExpression,
    #[serde(default)]
    extra: Vec<Extra>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClaimOrExpression {
    #[serde(default)]
    claim: String,
    prefix: Option<String>,
    #[serde(default)]
    expression: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Extra {
    key: String,
    #[serde(default)]
    value_expression: String,
    #[serde(default)]
    claim: String,
    #[serde(default)]
    prefix: String,
}

/// A wrong field, within the document.
#[derive(Debug)]
struct Wrong {
    field: String,
    problem: String,
}

fn wrong<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { field: field.into(), problem: problem.into() })
}

impl Document {
    fn check(self) -> Result<AuthenticationConfiguration, Wrong> {
        if self.kind != "AuthenticationConfiguration" {
            return wrong("kind", format!("it is {:?} and must be \"AuthenticationConfiguration\"", self.kind));
        }
        if !matches!(self.api_version.as_str(), "apiserver.config.k8s.io/v1" | "apiserver.config.k8s.io/v1beta1") {
            return wrong(
                "apiVersion",
                format!(
                    "it is {:?} and must be \"apiserver.config.k8s.io/v1\" or \"apiserver.config.k8s.io/v1beta1\"",
                    self.api_version
                ),
            );
        }
        let authenticators = self.jwt.unwrap_or_default();
        if authenticators.len() > JWT_ISSUERS_MAX {
            return wrong(
                "jwt",
                format!("it has {} issuers; at most {JWT_ISSUERS_MAX} are allowed", authenticators.len()),
            );
        }
        let mut urls = HashSet::new();
        let mut discovery_urls = HashSet::new();
        let mut issuers = Vec::with_capacity(authenticators.len());
        for (index, authenticator) in authenticators.into_iter().enumerate() {
            let issuer = authenticator.check(&format!("jwt[{index}]"))?;
            if !urls.insert(issuer.url.clone()) {
                return wrong(
                    format!("jwt[{index}].issuer.url"),
                    format!("another issuer has {:?} already", issuer.url),
                );
            }
            if !discovery_urls.insert(issuer.discovery_url.clone()) {
                return wrong(
                    format!("jwt[{index}].issuer.discoveryURL"),
                    format!("another issuer has {:?} already", issuer.discovery_url),
                );
            }
            issuers.push(issuer);
        }
        let anonymous = self.anonymous.map(Anonymous::check).transpose()?;
        Ok(AuthenticationConfiguration { issuers, anonymous })
    }
}

impl Anonymous {
    fn check(self) -> Result<AnonymousSettings, Wrong> {
        if !self.enabled && !self.conditions.is_empty() {
            return wrong("anonymous.conditions", "there must be none unless enabled is true");
        }
        let paths = self.conditions.into_iter().map(|condition| condition.path).collect();
        Ok(AnonymousSettings { enabled: self.enabled, paths })
    }
}

impl JwtAuthenticator {
    fn check(self, field: &str) -> Result<IssuerSettings, Wrong> {
        if !self.user_validation_rules.is_empty() {
            return wrong(
                format!("{field}.userValidationRules"),
                "they are CEL expressions, which are not supported here; remove them, and demand the same of claims with \
                 claimValidationRules[].requiredValue, or of users with the cluster's policies",
            );
        }
        let (discovery_url, certificate_authority) = self.issuer.check(&format!("{field}.issuer"))?;
        let mappings = format!("{field}.claimMappings");
        let username = self.claim_mappings.username.check(&format!("{mappings}.username"))?;
        let Some(username) = username else { return wrong(format!("{mappings}.username.claim"), "it is required") };
        let groups = self.claim_mappings.groups.check(&format!("{mappings}.groups"))?;
        let uid = self.claim_mappings.uid.check_uid(&format!("{mappings}.uid"))?;
        let mut keys = HashSet::new();
        let mut extra = Vec::with_capacity(self.claim_mappings.extra.len());
        for (index, mapping) in self.claim_mappings.extra.into_iter().enumerate() {
            let field = format!("{mappings}.extra[{index}]");
            if !keys.insert(mapping.key.clone()) {
                return wrong(format!("{field}.key"), format!("another extra has {:?} already", mapping.key));
            }
            extra.push(mapping.check(&field)?);
        }
        let mut claims = HashSet::new();
        let mut required_claims = Vec::with_capacity(self.claim_validation_rules.len());
        for (index, rule) in self.claim_validation_rules.into_iter().enumerate() {
            let field = format!("{field}.claimValidationRules[{index}]");
            if !claims.insert(rule.claim.clone()) && rule.expression.is_empty() {
                return wrong(format!("{field}.claim"), format!("another rule is for {:?} already", rule.claim));
            }
            required_claims.push(rule.check(&field)?);
        }
        Ok(IssuerSettings {
            url: self.issuer.url,
            discovery_url,
            certificate_authority,
            audiences: self.issuer.audiences,
            username,
            groups,
            uid,
            extra,
            required_claims,
        })
    }
}

impl Issuer {
    /// Where to discover it, and by whose authority.
    fn check(&self, field: &str) -> Result<(String, Option<String>), Wrong> {
        check_url(&self.url, &format!("{field}.url"))?;
        let slashless = self.url.trim_end_matches('/');
        let discovery_url = match self.discovery_url.as_deref() {
            // One slash only, as in kube-apiserver.
            None | Some("") => {
                format!("{}/.well-known/openid-configuration", self.url.strip_suffix('/').unwrap_or(&self.url))
            }
            Some(url) => {
                let field = format!("{field}.discoveryURL");
                check_url(url, &field)?;
                if url.trim_end_matches('/') == slashless {
                    return wrong(field, "it must differ from url; leave it out if discovery is there");
                }
                url.to_owned()
            }
        };
        if self.audiences.is_empty() {
            return wrong(format!("{field}.audiences"), "at least one is required");
        }
        let mut seen = HashSet::new();
        for (index, audience) in self.audiences.iter().enumerate() {
            if audience.is_empty() || !seen.insert(audience) {
                return wrong(format!("{field}.audiences[{index}]"), format!("{audience:?} is empty, or there twice"));
            }
        }
        match self.audience_match_policy.as_str() {
            "MatchAny" => {}
            "" if self.audiences.len() == 1 => {}
            policy => {
                return wrong(
                    format!("{field}.audienceMatchPolicy"),
                    format!("it is {policy:?} and must be \"MatchAny\" (it may be left out if there is one audience)"),
                );
            }
        }
        if !self.egress_selector_type.is_empty() {
            return wrong(
                format!("{field}.egressSelectorType"),
                "the gateway has no egress selectors, and connects directly; remove it",
            );
        }
        if self.certificate_authority.is_empty() {
            return Ok((discovery_url, None));
        }
        let certificates: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(self.certificate_authority.as_bytes()).collect();
        if certificates.map_or(true, |certificates| certificates.is_empty()) {
            return wrong(format!("{field}.certificateAuthority"), "it must be one or more PEM certificates");
        }
        Ok((discovery_url, Some(self.certificate_authority.clone())))
    }
}

fn check_url(url: &str, field: &str) -> Result<(), Wrong> {
    let problem = match url.parse::<Uri>() {
        Err(_) => "it is no URL",
        Ok(_) if url.contains('#') => "it must have no fragment",
        Ok(uri) if uri.scheme_str() != Some("https") => "it must begin with https://",
        Ok(uri) if uri.query().is_some() => "it must have no query",
        Ok(uri) if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) => {
            "it must have no user name and no password"
        }
        Ok(uri) if uri.host().is_none_or(str::is_empty) => "it has no host",
        Ok(_) => return Ok(()),
    };
    wrong(field, format!("{url:?}: {problem}"))
}

impl ClaimOrExpression {
    fn refuse_expression(&self, field: &str) -> Result<(), Wrong> {
        if self.expression.is_empty() {
            return Ok(());
        }
        wrong(format!("{field}.expression"), "CEL expressions are not supported here; name a claim instead")
    }

    fn check(self, field: &str) -> Result<Option<ClaimMapping>, Wrong> {
        self.refuse_expression(field)?;
        match (self.claim.is_empty(), self.prefix) {
            (true, None) => Ok(None),
            (true, Some(prefix)) if prefix.is_empty() => Ok(None),
            (true, Some(_)) => wrong(format!("{field}.prefix"), "it has no use without claim"),
            (false, Some(prefix)) => Ok(Some(ClaimMapping { claim: self.claim, prefix })),
            (false, None) => {
                wrong(format!("{field}.prefix"), "it is required with claim; \"\" puts nothing in front of the value")
            }
        }
    }

    fn check_uid(self, field: &str) -> Result<Option<String>, Wrong> {
        self.refuse_expression(field)?;
        if self.prefix.is_some() {
            return wrong(format!("{field}.prefix"), "a UID has no prefix; remove it");
        }
        Ok(Some(self.claim).filter(|claim| !claim.is_empty()))
    }
}

impl Extra {
    fn check(self, field: &str) -> Result<ExtraMapping, Wrong> {
        if let Some(problem) = extra_key_problem(&self.key) {
            return wrong(format!("{field}.key"), format!("{:?}: {problem}", self.key));
        }
        let expression = format!("{field}.valueExpression");
        let source = match (self.value_expression.is_empty(), self.claim.is_empty()) {
            (true, true) => return wrong(expression, "it, or claim, is required"),
            (false, false) => return wrong(expression, "it can't be set together with claim"),
            (true, false) => ExtraSource::Claim { claim: self.claim, prefix: self.prefix },
            (false, true) => match simple_expression(self.value_expression.trim()) {
                Some(source) if self.prefix.is_empty() => source,
                Some(_) => return wrong(format!("{field}.prefix"), "it has no use without claim"),
                None => {
                    return wrong(
                        expression,
                        "of CEL, only claims.NAME (claims.NAME.PART and so on) and 'TEXT' are supported here; use one of \
                         those, or claim and prefix",
                    );
                }
            },
        };
        Ok(ExtraMapping { key: self.key, source })
    }
}

/// The two kinds of expressions that need no interpreter.
fn simple_expression(expression: &str) -> Option<ExtraSource> {
    for quote in ['\'', '"'] {
        if let Some(text) = expression.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            // Anything that could be an escape, or the end of the text, is no simple text.
            let simple = !text.contains(['\'', '"', '\\', '\n', '\r']);
            return simple.then(|| ExtraSource::Literal(text.to_owned()));
        }
    }
    let is_name = |name: &str| {
        !name.starts_with(|first: char| first.is_ascii_digit())
            && !name.is_empty()
            && name.chars().all(|char| char.is_ascii_alphanumeric() || char == '_')
            // These are how CEL writes names with other characters.
            && !name.contains("__")
    };
    let path: Vec<String> = expression.strip_prefix("claims.")?.split('.').map(str::to_owned).collect();
    path.iter().all(|name| is_name(name)).then_some(ExtraSource::Path(path))
}

/// What is wrong with the key of an extra, by Kubernetes' rules.
fn extra_key_problem(key: &str) -> Option<&'static str> {
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    if key.chars().any(char::is_uppercase) {
        return Some("it must be in lower case");
    }
    let Some((domain, path)) = key.split_once('/') else {
        return Some("it must begin with a domain, as example.org/key does");
    };
    if domain.len() > 253 || !domain.split('.').all(is_label) {
        return Some("what is before the first / must be a domain");
    }
    let is_path_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte);
    if path.is_empty() || !path.bytes().all(is_path_byte) {
        return Some("what is after the first / must be a path");
    }
    let reserved = |of: &str| domain == of || domain.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'));
    if reserved("kubernetes.io") || reserved("k8s.io") {
        return Some("k8s.io and kubernetes.io are for Kubernetes itself");
    }
    None
}

impl ClaimValidationRule {
    fn check(self, field: &str) -> Result<(String, String), Wrong> {
        if !self.expression.is_empty() {
            return wrong(
                format!("{field}.expression"),
                "CEL expressions are not supported here; use claim and requiredValue instead",
            );
        }
        if self.claim.is_empty() {
            return wrong(format!("{field}.claim"), "it is required");
        }
        if !self.message.is_empty() {
            return wrong(format!("{field}.message"), "it is for expressions, and has no use with claim");
        }
        Ok((self.claim, self.required_value))
    }
}

#[cfg(test)]
#[path = "configuration_tests.rs"]
mod tests;
