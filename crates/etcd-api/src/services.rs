//! The methods of every service of the API, by path.
//!
//! Invariant: [`Method`] lists exactly the methods of the descriptor set; a test compares the two.

/// How many messages go each way in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MethodKind {
    /// One request, one response.
    Unary,
    /// One request, many responses.
    ServerStreaming,
    /// Many requests, one response.
    ClientStreaming,
    /// Many requests, many responses.
    Bidi,
}

impl MethodKind {
    /// The client sends any number of messages.
    pub const fn client_streams(self) -> bool {
        matches!(self, Self::ClientStreaming | Self::Bidi)
    }

    /// The server sends any number of messages.
    pub const fn server_streams(self) -> bool {
        matches!(self, Self::ServerStreaming | Self::Bidi)
    }

    /// Value of the label `grpc_type` of etcd's metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStreaming => "server_stream",
            Self::ClientStreaming => "client_stream",
            Self::Bidi => "bidi_stream",
        }
    }
}

/// One row a method, so that its path, kind and names cannot drift apart.
macro_rules! methods {
    ($($variant:ident: $kind:ident $service:literal $name:literal;)*) => {
        /// A method of the API. `as usize` numbers the methods from 0 as in [`Method::ALL`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Method {
            $(
                #[doc = concat!("`/", $service, "/", $name, "`")]
                $variant,
            )*
        }

        impl Method {
            /// Every method.
            pub const ALL: &'static [Method] = &[$(Method::$variant),*];

            /// The method with this HTTP path. Runs for every call: the methods called most are compared first.
            pub fn from_path(path: &str) -> Option<Method> {
                match path {
                    $(concat!("/", $service, "/", $name) => Some(Method::$variant),)*
                    _ => None,
                }
            }

            /// The HTTP path, `/package.Service/Method`.
            pub const fn path(self) -> &'static str {
                match self {
                    $(Method::$variant => concat!("/", $service, "/", $name),)*
                }
            }

            /// The full service name, `package.Service`.
            pub const fn service(self) -> &'static str {
                match self {
                    $(Method::$variant => $service,)*
                }
            }

            /// The name of the method within its service.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Method::$variant => $name,)*
                }
            }

            /// How many messages go each way.
            pub const fn kind(self) -> MethodKind {
                match self {
                    $(Method::$variant => MethodKind::$kind,)*
                }
            }
        }
    };
}

// etcd's methods bear their own name here, those of gRPC's services the name of the service before it.
methods! {
    Range: Unary "etcdserverpb.KV" "Range";
    Txn: Unary "etcdserverpb.KV" "Txn";
    LeaseGrant: Unary "etcdserverpb.Lease" "LeaseGrant";
    Put: Unary "etcdserverpb.KV" "Put";
    DeleteRange: Unary "etcdserverpb.KV" "DeleteRange";
    RangeStream: ServerStreaming "etcdserverpb.KV" "RangeStream";
    Compact: Unary "etcdserverpb.KV" "Compact";
    Watch: Bidi "etcdserverpb.Watch" "Watch";
    LeaseKeepAlive: Bidi "etcdserverpb.Lease" "LeaseKeepAlive";
    LeaseRevoke: Unary "etcdserverpb.Lease" "LeaseRevoke";
    LeaseTimeToLive: Unary "etcdserverpb.Lease" "LeaseTimeToLive";
    LeaseLeases: Unary "etcdserverpb.Lease" "LeaseLeases";
    HealthCheck: Unary "grpc.health.v1.Health" "Check";
    HealthList: Unary "grpc.health.v1.Health" "List";
    HealthWatch: ServerStreaming "grpc.health.v1.Health" "Watch";
    Status: Unary "etcdserverpb.Maintenance" "Status";
    Alarm: Unary "etcdserverpb.Maintenance" "Alarm";
    Defragment: Unary "etcdserverpb.Maintenance" "Defragment";
    Hash: Unary "etcdserverpb.Maintenance" "Hash";
    HashKv: Unary "etcdserverpb.Maintenance" "HashKV";
    Snapshot: ServerStreaming "etcdserverpb.Maintenance" "Snapshot";
    MoveLeader: Unary "etcdserverpb.Maintenance" "MoveLeader";
    Downgrade: Unary "etcdserverpb.Maintenance" "Downgrade";
    MemberList: Unary "etcdserverpb.Cluster" "MemberList";
    MemberAdd: Unary "etcdserverpb.Cluster" "MemberAdd";
    MemberRemove: Unary "etcdserverpb.Cluster" "MemberRemove";
    MemberUpdate: Unary "etcdserverpb.Cluster" "MemberUpdate";
    MemberPromote: Unary "etcdserverpb.Cluster" "MemberPromote";
    Authenticate: Unary "etcdserverpb.Auth" "Authenticate";
    AuthEnable: Unary "etcdserverpb.Auth" "AuthEnable";
    AuthDisable: Unary "etcdserverpb.Auth" "AuthDisable";
    AuthStatus: Unary "etcdserverpb.Auth" "AuthStatus";
    UserAdd: Unary "etcdserverpb.Auth" "UserAdd";
    UserGet: Unary "etcdserverpb.Auth" "UserGet";
    UserList: Unary "etcdserverpb.Auth" "UserList";
    UserDelete: Unary "etcdserverpb.Auth" "UserDelete";
    UserChangePassword: Unary "etcdserverpb.Auth" "UserChangePassword";
    UserGrantRole: Unary "etcdserverpb.Auth" "UserGrantRole";
    UserRevokeRole: Unary "etcdserverpb.Auth" "UserRevokeRole";
    RoleAdd: Unary "etcdserverpb.Auth" "RoleAdd";
    RoleGet: Unary "etcdserverpb.Auth" "RoleGet";
    RoleList: Unary "etcdserverpb.Auth" "RoleList";
    RoleDelete: Unary "etcdserverpb.Auth" "RoleDelete";
    RoleGrantPermission: Unary "etcdserverpb.Auth" "RoleGrantPermission";
    RoleRevokePermission: Unary "etcdserverpb.Auth" "RoleRevokePermission";
    Lock: Unary "v3lockpb.Lock" "Lock";
    Unlock: Unary "v3lockpb.Lock" "Unlock";
    Campaign: Unary "v3electionpb.Election" "Campaign";
    Proclaim: Unary "v3electionpb.Election" "Proclaim";
    Leader: Unary "v3electionpb.Election" "Leader";
    Observe: ServerStreaming "v3electionpb.Election" "Observe";
    Resign: Unary "v3electionpb.Election" "Resign";
    ReflectionV1: Bidi "grpc.reflection.v1.ServerReflection" "ServerReflectionInfo";
    ReflectionV1Alpha: Bidi "grpc.reflection.v1alpha.ServerReflection" "ServerReflectionInfo";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::descriptor::FILE_DESCRIPTOR_SET;

    #[test]
    fn methods_are_those_of_the_descriptors() {
        let descriptors = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let mut declared = BTreeMap::new();
        for file in &descriptors.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    declared.insert(path, (method.client_streaming(), method.server_streaming()));
                }
            }
        }
        let listed: BTreeMap<_, _> = Method::ALL
            .iter()
            .map(|m| (m.path().to_owned(), (m.kind().client_streams(), m.kind().server_streams())))
            .collect();
        assert_eq!(listed, declared);
        assert_eq!(listed.len(), Method::ALL.len(), "two methods share a path");
    }

    #[test]
    fn a_path_leads_to_its_method_and_back() {
        for (index, method) in Method::ALL.iter().copied().enumerate() {
            assert_eq!(method as usize, index);
            assert_eq!(Method::from_path(method.path()), Some(method));
            assert_eq!(method.path(), format!("/{}/{}", method.service(), method.name()));
        }
    }

    #[test]
    fn other_paths_have_no_method() {
        for path in ["", "/", "etcdserverpb.KV/Range", "/etcdserverpb.KV/range", "/etcdserverpb.KV/Range/", "/a.B/C"] {
            assert_eq!(Method::from_path(path), None, "{path}");
        }
    }
}
