//! The Auth service of a store without users: what etcd answers as long as nobody has been added.

use std::sync::Arc;

use kubewharf_etcd_api::EtcdError;
use kubewharf_etcd_api::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthRoleListRequest, AuthRoleListResponse, AuthStatusRequest,
    AuthStatusResponse, AuthUserListRequest, AuthUserListResponse, ResponseHeader,
};

use super::server::Server;
use crate::error::Error;

/// etcd counts changes of users, roles and permissions from here.
const AUTH_REVISION: u64 = 1;

fn header(server: &Server) -> Option<ResponseHeader> {
    Some(server.header(server.store.published().newest()))
}

pub(super) async fn auth_status(server: Arc<Server>, _: AuthStatusRequest) -> Result<AuthStatusResponse, Error> {
    Ok(AuthStatusResponse { header: header(&server), enabled: false, auth_revision: AUTH_REVISION })
}

pub(super) async fn disable(server: Arc<Server>, _: AuthDisableRequest) -> Result<AuthDisableResponse, Error> {
    Ok(AuthDisableResponse { header: header(&server) })
}

pub(super) async fn user_list(server: Arc<Server>, _: AuthUserListRequest) -> Result<AuthUserListResponse, Error> {
    Ok(AuthUserListResponse { header: header(&server), users: Vec::new() })
}

pub(super) async fn role_list(server: Arc<Server>, _: AuthRoleListRequest) -> Result<AuthRoleListResponse, Error> {
    Ok(AuthRoleListResponse { header: header(&server), roles: Vec::new() })
}

/// The refusal of a method that needs a user or a role, or auth to be on.
pub(super) fn refusal(method: kubewharf_etcd_api::Method) -> Option<EtcdError> {
    use kubewharf_etcd_api::Method;
    match method {
        Method::Authenticate => Some(EtcdError::AuthNotEnabled),
        Method::AuthEnable => Some(EtcdError::RootUserNotExist),
        Method::UserGet
        | Method::UserDelete
        | Method::UserChangePassword
        | Method::UserGrantRole
        | Method::UserRevokeRole => Some(EtcdError::UserNotFound),
        Method::RoleGet | Method::RoleDelete | Method::RoleGrantPermission | Method::RoleRevokePermission => {
            Some(EtcdError::RoleNotFound)
        }
        _ => None,
    }
}
