//! What zoo answers itself: who somebody is, who may do what, and tokens of service accounts.
//!
//! Invariant: the answer is about the tenant alone. Nothing of it is asked upstream but whether a service account is there.

use http::header::USER_AGENT;
use http::{Method, Response, StatusCode};
use kubewharf_front::Inbound;
use kubewharf_kube_api::Status;
use kubewharf_kube_api::status::FieldError;
use serde_json::{Value, json};

use crate::authz::{UserInfo, review};
use crate::limits::OWN_ANSWER_BYTES_MAX;
use crate::mounted;
use crate::rewrite::Kind;
use crate::time::{now, rfc3339};
use crate::tokens::{Account, TOKEN_AUDIENCE};

use super::target::by_router;
use super::{Asked, Body, Wanted, failed, json as json_response, json_line, segment};

/// How long a token lasts if its request does not say.
const TOKEN_SECONDS: u64 = 3600;
/// The shortest and the longest that it can ask for.
const TOKEN_SECONDS_RANGE: std::ops::RangeInclusive<u64> = 600..=31_536_000;

impl Asked {
    /// Answers a request that is decided here.
    pub(super) async fn decided(
        &self,
        method: &Method,
        wanted: &Wanted<'_>,
        kind: Kind,
        incoming: Inbound,
    ) -> Result<Response<Body>, Box<Status>> {
        if *method != Method::POST {
            return Err(by_router(Status::method_not_allowed()));
        }
        let body = self.read_body(incoming).await?;
        let body = self.body_json(kind, &body)?;
        let info = wanted.info;
        if let Some(kind) = review::Kind::of_request(info) {
            self.wait_for_policies().await?;
            let user_agent = self.headers.get(USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()));
            let question = review::Question {
                kind,
                namespace: &info.namespace,
                body: body.as_bytes(),
                field_manager: &wanted.query.get("fieldManager").unwrap_or_default(),
                user_agent: &user_agent.unwrap_or_default(),
                now: &rfc3339(now()),
            };
            let answer = review::answer(&self.policy(), &self.user, &question).map_err(Box::new)?;
            return Ok(json_response(StatusCode::CREATED, answer.into()));
        }
        let body: Value = serde_json::from_str(&body)
            .map_err(|error| Box::new(Status::bad_request(format!("the body can't be read: {error}"))))?;
        match &*info.resource {
            "serviceaccounts" => self.token(wanted, body).await,
            _ => self.token_review(body).await,
        }
    }

    /// Makes a token of a service account.
    async fn token(&self, wanted: &Wanted<'_>, mut request: Value) -> Result<Response<Body>, Box<Status>> {
        let info = wanted.info;
        let name = segment(&info.name)?;
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{name}", self.names().inward(&info.namespace));
        let found = self.object(&path).await?;
        let Some(found) = found else {
            let namespace = format!("/api/v1/namespaces/{}", self.names().inward(&info.namespace));
            let there = self.object(&namespace).await?;
            return Err(Box::new(match there {
                Some(_) => Status::object_not_found("", "serviceaccounts", &info.name),
                None => Status::object_not_found("", "namespaces", &info.namespace),
            }));
        };
        let uid = found.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned();
        let spec = request.get("spec").cloned().unwrap_or_default();
        let seconds = spec.get("expirationSeconds").and_then(Value::as_u64).unwrap_or(TOKEN_SECONDS);
        if seconds < *TOKEN_SECONDS_RANGE.start() {
            let why = "may not specify a duration less than 10 minutes";
            let error = FieldError::invalid_value("spec.expirationSeconds", &seconds.to_string(), why);
            return Err(Box::new(Status::invalid("authentication.k8s.io", "TokenRequest", "", vec![error])));
        }
        if !TOKEN_SECONDS_RANGE.contains(&seconds) {
            return Err(Box::new(Status::bad_request(format!(
                "spec.expirationSeconds: {seconds}: a token of a tenant lasts from 10 minutes to a year"
            ))));
        }
        let mut audiences: Vec<String> = spec
            .get("audiences")
            .and_then(Value::as_array)
            .map(|audiences| audiences.iter().filter_map(|audience| audience.as_str().map(str::to_owned)).collect())
            .unwrap_or_default();
        if audiences.is_empty() {
            audiences.push(TOKEN_AUDIENCE.to_owned());
        }
        let bound = match spec.get("boundObjectRef").filter(|bound| !bound.is_null()) {
            Some(bound) => Some(self.bound_object(info, bound).await?),
            None => None,
        };
        let account = Account {
            tenant_uid: self.names().uid().to_owned(),
            tenant: self.tenant.name.to_string(),
            namespace: info.namespace.to_string(),
            name: info.name.to_string(),
            uid: uid.clone(),
            bound,
        };
        let begins = now();
        let token = self.proxy.tokens.sign(&account, &audiences, begins, begins + seconds);
        request["kind"] = "TokenRequest".into();
        request["apiVersion"] = "authentication.k8s.io/v1".into();
        request["metadata"] = json!({
            "name": info.name, "namespace": info.namespace, "uid": uid, "creationTimestamp": rfc3339(begins),
        });
        request["spec"] = json!({
            "audiences": audiences, "expirationSeconds": seconds,
            "boundObjectRef": spec.get("boundObjectRef").cloned().unwrap_or_default(),
        });
        request["status"] = json!({ "token": token, "expirationTimestamp": rfc3339(begins + seconds) });
        Ok(json_response(StatusCode::CREATED, json_line(&request)))
    }

    /// Kind, name and UID of what a token shall be bound to: it must be there.
    async fn bound_object(
        &self,
        info: &kubewharf_kube_api::RequestInfo<'_>,
        bound: &Value,
    ) -> Result<(String, String, String), Box<Status>> {
        let text = |field: &str| bound.get(field).and_then(Value::as_str).unwrap_or_default();
        let resource = match text("kind") {
            "Pod" => "pods",
            "Secret" => "secrets",
            other => {
                return Err(Box::new(Status::bad_request(format!(
                    "spec.boundObjectRef.kind: {other:?}: a token of a tenant can be bound to a Pod or a Secret"
                ))));
            }
        };
        let name = text("name");
        let segment = segment(name)?;
        let path = format!("/api/v1/namespaces/{}/{resource}/{segment}", self.names().inward(&info.namespace));
        let found = self.object(&path).await?.unwrap_or_default();
        let uid = found.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
        if uid.is_empty() {
            return Err(Box::new(Status::object_not_found("", resource, name)));
        }
        let wanted = text("uid");
        if !wanted.is_empty() && wanted != uid {
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. \
                 The object might have been deleted and then recreated"
            );
            return Err(Box::new(Status::conflict("", text("kind"), name, &why)));
        }
        Ok((text("kind").to_lowercase(), name.to_owned(), uid.to_owned()))
    }

    /// An object upstream; none if it is not there.
    async fn object(&self, path: &str) -> Result<Option<Value>, Box<Status>> {
        match self.proxy.upstream.own_json(Method::GET, path, &Value::Null, OWN_ANSWER_BYTES_MAX).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Judges a token, for somebody to whom it was shown.
    async fn token_review(&self, mut review: Value) -> Result<Response<Body>, Box<Status>> {
        let token = review.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default();
        let audiences: Vec<String> = match review.pointer("/spec/audiences").and_then(Value::as_array) {
            Some(audiences) if !audiences.is_empty() => {
                audiences.iter().filter_map(|audience| audience.as_str().map(str::to_owned)).collect()
            }
            _ => vec![TOKEN_AUDIENCE.to_owned()],
        };
        let known = self.proxy.tokens.check(token, &audiences, now());
        let known = match known {
            Ok(known)
                if known.account.tenant_uid == self.names().uid() && self.is_still_there(&known.account).await? =>
            {
                Some((known.user(), known.audiences))
            }
            Ok(_) => None,
            Err(why) => {
                tracing::debug!(why, "a token is not zoo's");
                self.mounted_token(token, &audiences).await?
            }
        };
        let status = match known {
            Some((user, audiences)) => json!({ "authenticated": true, "user": user, "audiences": audiences }),
            None => json!({ "error": "invalid bearer token", "user": {} }),
        };
        review["kind"] = "TokenReview".into();
        review["apiVersion"] = "authentication.k8s.io/v1".into();
        if !review.get("metadata").is_some_and(Value::is_object) {
            review["metadata"] = json!({});
        }
        review["status"] = status;
        Ok(json_response(StatusCode::CREATED, json_line(&review)))
    }

    /// Who shows a token that a kubelet mounted in one of the tenant's pods.
    async fn mounted_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, Box<Status>> {
        if mounted::claimed(token, now()).is_none_or(|claimed| claimed.tenant_uid != self.names().uid()) {
            return Ok(None);
        }
        let judged = self.proxy.judge_mounted(&self.tenant, token, audiences).await?;
        Ok(judged.map(|judged| (judged.user, judged.audiences)))
    }

    async fn is_still_there(&self, account: &Account) -> Result<bool, Box<Status>> {
        self.proxy.is_still_there(&self.tenant, account).await.map_err(|error| failed(&error))
    }
}
