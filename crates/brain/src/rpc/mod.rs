//! The API on the wire: the only part of this crate that knows gRPC, HTTP and encoded messages.
//!
//! Methods that kube-apiserver calls all the time are served on the connection's task or answered by the committer's thread; all
//! others run as tasks.

mod auth;
mod budget;
mod cluster;
mod counts;
mod health;
mod http;
mod kv;
mod lease;
mod list;
mod log;
mod maintenance;
pub mod metrics;
mod peer;
pub(crate) mod quota;
mod reflection;
mod server;
mod status;
mod watch;
mod work;

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use kubewharf_etcd_api::Method;
use kubewharf_grpc::{
    CallContext, Code, Dispatch, HttpFuture, MethodId, Peer, RequestStream, ResponseSink, Route, UnaryReply,
};
use prost::Message;

pub use http::{GrpcOnly, HttpOnly};
pub use maintenance::ETCD_VERSION;
pub use peer::PeerApi;
pub use server::{Server, ServerOptions};
pub(crate) use status::status;

use crate::error::Error;

/// Routes calls to the services.
pub struct Api(pub Arc<Server>);

impl Dispatch for Api {
    fn route(&self, path: &str) -> Route {
        match Method::from_path(path) {
            Some(method) => {
                let id = MethodId(method as u16);
                let kind = method.kind();
                if kind.client_streams() || kind.server_streams() { Route::Streaming(id) } else { Route::Unary(id) }
            }
            None if knows_service(path) => Route::UnknownMethod,
            None => Route::UnknownService,
        }
    }

    fn unary(&self, method: MethodId, context: CallContext, message: Bytes, reply: UnaryReply) {
        let method = Method::ALL[usize::from(method.0)];
        self.0.metrics.calls.started(method);
        if peer::is_for_leader(method)
            && let Some(cluster) = self.0.cluster.as_ref().filter(|_| !self.0.store.is_leading())
        {
            return peer::forward(&self.0, cluster.clone(), method, context, message, reply);
        }
        answer(&self.0, method, context, message, reply);
    }

    fn stream(&self, method: MethodId, context: CallContext, requests: RequestStream, responses: ResponseSink) {
        let server = self.0.clone();
        let method = Method::ALL[usize::from(method.0)];
        server.metrics.calls.started(method);
        match method {
            Method::Watch => start(&server.clone(), watch::serve(server, context, requests, responses)),
            Method::RangeStream => start(&server.clone(), list::range_stream(server, context, requests, responses)),
            Method::LeaseKeepAlive => start(&server.clone(), lease::keep_alive(server, context, requests, responses)),
            Method::HealthWatch => start(&server.clone(), health::watch(server, context, requests, responses)),
            Method::ReflectionV1 | Method::ReflectionV1Alpha => {
                start(&server.clone(), reflection::serve(server, context, requests, responses));
            }
            _ => responses.finish(status::not_built(method)),
        }
    }

    fn ended(&self, method: MethodId, code: Code) {
        self.0.metrics.calls.handled(Method::ALL[usize::from(method.0)], code);
    }

    fn http(&self, request: ::http::Request<Bytes>, peer: Arc<Peer>) -> HttpFuture {
        http::serve(self.0.clone(), request, peer)
    }
}

/// Answers a unary call here.
fn answer(server: &Arc<Server>, method: Method, context: CallContext, message: Bytes, reply: UnaryReply) {
    match method {
        Method::Range => kv::serve_range(server, context.deadline(), message, reply),
        Method::Put => kv::serve_put(server, message, reply),
        Method::DeleteRange => kv::serve_delete_range(server, message, reply),
        Method::Txn => kv::serve_txn(server, context.deadline(), message, reply),
        Method::Compact => spawn(server, message, reply, kv::compact),
        Method::LeaseGrant => spawn(server, message, reply, lease::grant),
        Method::LeaseRevoke => spawn(server, message, reply, lease::revoke),
        Method::LeaseTimeToLive => spawn(server, message, reply, lease::time_to_live),
        Method::LeaseLeases => spawn(server, message, reply, lease::leases),
        Method::MemberList => spawn(server, message, reply, cluster::member_list),
        Method::MemberRemove => spawn(server, message, reply, cluster::member_remove),
        Method::MoveLeader => spawn(server, message, reply, maintenance::move_leader),
        Method::Status => spawn(server, message, reply, maintenance::status),
        Method::Alarm => spawn(server, message, reply, maintenance::alarm),
        Method::Defragment => spawn(server, message, reply, maintenance::defragment),
        Method::Hash => spawn(server, message, reply, maintenance::hash),
        Method::HashKv => spawn(server, message, reply, maintenance::hash_kv),
        Method::HealthCheck => spawn(server, message, reply, health::check),
        Method::HealthList => spawn(server, message, reply, health::list),
        Method::AuthStatus => spawn(server, message, reply, auth::auth_status),
        Method::AuthDisable => spawn(server, message, reply, auth::disable),
        Method::UserList => spawn(server, message, reply, auth::user_list),
        Method::RoleList => spawn(server, message, reply, auth::role_list),
        _ => reply
            .send(Err(auth::refusal(method)
                .map_or_else(|| status::not_built(method), |error| status::status(&Error::Api(error))))),
    }
    drop(context);
}

fn knows_service(path: &str) -> bool {
    let service = path.strip_prefix('/').and_then(|path| path.rsplit_once('/')).map(|(service, _)| service);
    Method::ALL.iter().any(|method| Some(method.service()) == service)
}

/// Runs a unary method as a task.
fn spawn<Request, Response, Run, Running>(server: &Arc<Server>, message: Bytes, reply: UnaryReply, run: Run)
where
    Request: Message + Default + 'static,
    Response: Message,
    Run: FnOnce(Arc<Server>, Request) -> Running + Send + 'static,
    Running: Future<Output = Result<Response, Error>> + Send,
{
    let request = match Request::decode(message) {
        Ok(request) => request,
        Err(error) => return reply.send(Err(status::malformed(&error))),
    };
    let running = server.clone();
    server.runtime.spawn(async move {
        let result = run(running, request).await;
        reply.send(
            result.map(|response| Bytes::from(response.encode_to_vec()).into()).map_err(|error| status::status(&error)),
        );
    });
}

fn start(server: &Arc<Server>, stream: impl Future<Output = ()> + Send + 'static) {
    server.runtime.spawn(stream);
}
