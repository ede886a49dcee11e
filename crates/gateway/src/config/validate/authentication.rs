//! How users are recognized.

use std::time::Duration;

use super::super::cluster::{AuthenticationConfig, FileContents, TokenReviewConfig};
use super::super::manifest::ClusterSpec;
use super::super::problem::At;
use super::Check;

/// For how long an answer about a token is believed: as kube-apiserver believes a webhook's.
const CACHE_SECONDS: u32 = 10;
/// The longest such time: so long a revoked token still works.
const CACHE_SECONDS_MAX: u32 = 600;
const TIMEOUT_SECONDS: u32 = 2;
const TIMEOUT_SECONDS_MAX: u32 = 30;

impl Check<'_, '_> {
    pub(super) fn authentication(&mut self, spec: &ClusterSpec, at: &At<'_>) -> AuthenticationConfig {
        let at = at.key("authentication");
        let review_at = at.key("tokenReview");
        let review = &spec.authentication.token_review;
        let mut seconds = |field, value: Option<u32>, default: u32, min: u32, max: u32| {
            let value = value.unwrap_or(default);
            if !(min..=max).contains(&value) {
                let problem = format!("{value} is out of bounds");
                self.report.error(&review_at.key(field), problem, format!("write a number from {min} to {max}"));
            }
            Duration::from_secs(u64::from(value))
        };
        let token_review = TokenReviewConfig {
            cache: seconds("cacheSeconds", review.cache_seconds, CACHE_SECONDS, 0, CACHE_SECONDS_MAX),
            failure_cache: seconds(
                "failureCacheSeconds",
                review.failure_cache_seconds,
                CACHE_SECONDS,
                0,
                CACHE_SECONDS_MAX,
            ),
            timeout: seconds("timeoutSeconds", review.timeout_seconds, TIMEOUT_SECONDS, 1, TIMEOUT_SECONDS_MAX),
            audiences: review.audiences.clone(),
        };
        let path = &spec.authentication.configuration_file;
        let configuration = if path.is_empty() { None } else { self.read(path, &at.key("configurationFile")) };
        AuthenticationConfig {
            token_review: (!review.disabled).then_some(token_review),
            configuration: configuration.map(|(path, contents)| FileContents { path, contents: contents.into() }),
            anonymous: spec.anonymous,
        }
    }
}
