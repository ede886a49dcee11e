//! The errors of the etcd v3 API with the gRPC code and the text etcd 3.7 gives them.
//!
//! Clients tell errors apart by code and by text (client-go by code alone, etcd's own client by text), so both are
//! facts of the API and never change here. Invariant: no two errors of the catalogue have the same text.

use std::borrow::Cow;
use std::fmt;

/// A gRPC status code; `as u8` is the number in the trailer `grpc-status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// No error.
    Ok = 0,
    /// The caller gave up.
    Canceled = 1,
    /// Something without a code of its own.
    Unknown = 2,
    /// The request makes no sense, whatever the state.
    InvalidArgument = 3,
    /// Time ran out.
    DeadlineExceeded = 4,
    /// What was asked for is not there.
    NotFound = 5,
    /// What was to be created is there.
    AlreadyExists = 6,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// A quota is used up.
    ResourceExhausted = 8,
    /// The state does not allow this.
    FailedPrecondition = 9,
    /// A conflict with another call.
    Aborted = 10,
    /// Outside the range the state allows.
    OutOfRange = 11,
    /// The server does not do this.
    Unimplemented = 12,
    /// The server broke an invariant.
    Internal = 13,
    /// Not now; the caller may try again.
    Unavailable = 14,
    /// Data is lost or corrupt.
    DataLoss = 15,
    /// The caller is not known.
    Unauthenticated = 16,
}

impl Code {
    /// Every code; a code stands at the index of its number.
    pub const ALL: [Code; 17] = [
        Code::Ok,
        Code::Canceled,
        Code::Unknown,
        Code::InvalidArgument,
        Code::DeadlineExceeded,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unimplemented,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
        Code::Unauthenticated,
    ];

    /// The code with this number. A number gRPC does not define counts as [`Code::Unknown`].
    pub fn from_number(number: u32) -> Code {
        usize::try_from(number).ok().and_then(|index| Self::ALL.get(index)).copied().unwrap_or(Code::Unknown)
    }

    /// Value of the label `grpc_code` of etcd's metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Code::Ok => "OK",
            Code::Canceled => "Canceled",
            Code::Unknown => "Unknown",
            Code::InvalidArgument => "InvalidArgument",
            Code::DeadlineExceeded => "DeadlineExceeded",
            Code::NotFound => "NotFound",
            Code::AlreadyExists => "AlreadyExists",
            Code::PermissionDenied => "PermissionDenied",
            Code::ResourceExhausted => "ResourceExhausted",
            Code::FailedPrecondition => "FailedPrecondition",
            Code::Aborted => "Aborted",
            Code::OutOfRange => "OutOfRange",
            Code::Unimplemented => "Unimplemented",
            Code::Internal => "Internal",
            Code::Unavailable => "Unavailable",
            Code::DataLoss => "DataLoss",
            Code::Unauthenticated => "Unauthenticated",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// One row an error, so that its code and text cannot drift apart.
macro_rules! catalogue {
    ($($(#[$doc:meta])* $variant:ident: $code:ident $text:literal;)*) => {
        /// An error of the etcd v3 API. Displays as its text.
        #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
        #[non_exhaustive]
        pub enum EtcdError {
            $(
                #[doc = concat!("`", $text, "`")]
                $(#[$doc])*
                #[error($text)]
                $variant,
            )*
            /// An error with a text made when it happens.
            #[error("{message}")]
            Other {
                /// The gRPC code.
                code: Code,
                /// The text.
                message: Cow<'static, str>,
            },
        }

        impl EtcdError {
            /// Every error with a fixed text.
            pub const CATALOGUE: &'static [EtcdError] = &[$(EtcdError::$variant),*];

            /// The gRPC code.
            pub const fn code(&self) -> Code {
                match self {
                    $(Self::$variant => Code::$code,)*
                    Self::Other { code, .. } => *code,
                }
            }

            /// The text, `grpc-message` before percent encoding.
            pub fn message(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Other { message, .. } => message,
                }
            }
        }
    };
}

impl EtcdError {
    /// An error with a text made when it happens.
    pub fn other(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self::Other { code, message: message.into() }
    }
}

// The first part is etcd's catalogue in its order. The texts of the second part stand elsewhere in the server, where
// an error without an entry in the catalogue gets the code `Unknown`.
catalogue! {
    EmptyKey: InvalidArgument "etcdserver: key is not provided";
    KeyNotFound: InvalidArgument "etcdserver: key not found";
    ValueProvided: InvalidArgument "etcdserver: value is provided";
    LeaseProvided: InvalidArgument "etcdserver: lease is provided";
    TooManyOps: InvalidArgument "etcdserver: too many operations in txn request";
    DuplicateKey: InvalidArgument "etcdserver: duplicate key given in txn request";
    InvalidClientApiVersion: InvalidArgument "etcdserver: invalid client api version";
    InvalidSortOption: InvalidArgument "etcdserver: invalid sort option";
    Compacted: OutOfRange "etcdserver: mvcc: required revision has been compacted";
    FutureRev: OutOfRange "etcdserver: mvcc: required revision is a future revision";
    NoSpace: ResourceExhausted "etcdserver: mvcc: database space exceeded";

    LeaseNotFound: NotFound "etcdserver: requested lease not found";
    LeaseExist: FailedPrecondition "etcdserver: lease already exists";
    LeaseTtlTooLarge: OutOfRange "etcdserver: too large lease TTL";

    WatchCanceled: Canceled "etcdserver: watch canceled";

    MemberExist: FailedPrecondition "etcdserver: member ID already exist";
    PeerUrlExist: FailedPrecondition "etcdserver: Peer URLs already exists";
    /// etcd's server sends it with code `Unknown`.
    MemberNotEnoughStarted: FailedPrecondition
        "etcdserver: re-configuration failed due to not enough started members";
    MemberBadUrls: InvalidArgument "etcdserver: given member URLs are invalid";
    MemberNotFound: NotFound "etcdserver: member not found";
    MemberNotLearner: FailedPrecondition "etcdserver: can only promote a learner member";
    LearnerNotReady: FailedPrecondition
        "etcdserver: can only promote a learner member which is in sync with leader";
    TooManyLearners: FailedPrecondition "etcdserver: too many learner members in cluster";
    ClusterIdMismatch: FailedPrecondition "etcdserver: cluster ID mismatch";

    RequestTooLarge: InvalidArgument "etcdserver: request is too large";
    /// etcd's server sends it with code `Unknown` when its apply queue is full.
    TooManyRequests: ResourceExhausted "etcdserver: too many requests";

    RootUserNotExist: FailedPrecondition "etcdserver: root user does not exist";
    RootRoleNotExist: FailedPrecondition "etcdserver: root user does not have root role";
    UserAlreadyExist: FailedPrecondition "etcdserver: user name already exists";
    UserEmpty: InvalidArgument "etcdserver: user name is empty";
    UserNotFound: FailedPrecondition "etcdserver: user name not found";
    RoleAlreadyExist: FailedPrecondition "etcdserver: role name already exists";
    RoleNotFound: FailedPrecondition "etcdserver: role name not found";
    RoleEmpty: InvalidArgument "etcdserver: role name is empty";
    AuthFailed: InvalidArgument "etcdserver: authentication failed, invalid user ID or password";
    PermissionNotGiven: InvalidArgument "etcdserver: permission not given";
    PermissionDenied: PermissionDenied "etcdserver: permission denied";
    RoleNotGranted: FailedPrecondition "etcdserver: role is not granted to the user";
    PermissionNotGranted: FailedPrecondition "etcdserver: permission is not granted to the role";
    AuthNotEnabled: FailedPrecondition "etcdserver: authentication is not enabled";
    InvalidAuthToken: Unauthenticated "etcdserver: invalid auth token";
    InvalidAuthMgmt: InvalidArgument "etcdserver: invalid auth management";
    AuthOldRevision: InvalidArgument "etcdserver: revision of auth store is old";

    NoLeader: Unavailable "etcdserver: no leader";
    NotLeader: FailedPrecondition "etcdserver: not leader";
    LeaderChanged: Unavailable "etcdserver: leader changed";
    NotCapable: FailedPrecondition "etcdserver: not capable";
    Stopped: Unavailable "etcdserver: server stopped";
    Timeout: Unavailable "etcdserver: request timed out";
    TimeoutDueToLeaderFail: Unavailable "etcdserver: request timed out, possibly due to previous leader failure";
    TimeoutDueToConnectionLost: Unavailable "etcdserver: request timed out, possibly due to connection lost";
    TimeoutWaitAppliedIndex: Unavailable
        "etcdserver: request timed out, waiting for the applied index took too long";
    Unhealthy: Unavailable "etcdserver: unhealthy cluster";
    Corrupt: DataLoss "etcdserver: corrupt cluster";
    NotSupportedForLearner: FailedPrecondition "etcdserver: rpc not supported for learner";
    BadLeaderTransferee: FailedPrecondition "etcdserver: bad leader transferee";

    WrongDowngradeVersionFormat: InvalidArgument "etcdserver: wrong downgrade target version format";
    InvalidDowngradeTargetVersion: InvalidArgument "etcdserver: invalid downgrade target version";
    ClusterVersionUnavailable: FailedPrecondition "etcdserver: cluster version not found during downgrade";
    DowngradeInProcess: FailedPrecondition "etcdserver: cluster has a downgrade job in progress";
    NoInflightDowngrade: FailedPrecondition "etcdserver: no inflight downgrade job";

    /// The server itself gave up. When the caller does, gRPC's own text is `context canceled`.
    Canceled: Canceled "etcdserver: request canceled";
    /// The server itself ran out of time. When the caller does, gRPC's own text is `context deadline exceeded`.
    DeadlineExceeded: DeadlineExceeded "etcdserver: context deadline exceeded";

    RangeStreamSortOrder: Unimplemented "RangeStream does not support custom sort orders";
    RangeStreamRevisionFilters: Unimplemented "RangeStream does not support revision filters";
    /// Never a status: the `cancel_reason` of a watch that was not created.
    WatcherRangeEmpty: Unknown "mvcc: watcher range is empty";
    /// Never a status: the `cancel_reason` of a watch that was not created.
    WatcherDuplicateId: Unknown "mvcc: duplicate watch ID provided on the WatchStream";
    LeaseNotPrimary: Unknown "not a primary lessor";
    NoPasswordUser: Unknown "auth: authentication failed, password was given for no password user";
    LeaderTransferTimeout: Unknown "etcdserver: request timed out, leader transfer took too long";
    MissingLeaderKey: Unknown "\"leader\" field must be provided";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_errors_have_the_same_text() {
        let texts: HashSet<&str> = EtcdError::CATALOGUE.iter().map(EtcdError::message).collect();
        assert_eq!(texts.len(), EtcdError::CATALOGUE.len());
    }

    #[test]
    fn an_error_displays_as_its_text() {
        for error in EtcdError::CATALOGUE {
            assert_eq!(error.to_string(), error.message());
            assert_ne!(error.code(), Code::Ok, "{error}");
        }
        let other = EtcdError::other(Code::Internal, format!("table {} is {}", 1, "gone"));
        assert_eq!(other.to_string(), "table 1 is gone");
        assert_eq!(other.message(), "table 1 is gone");
        assert_eq!(other.code(), Code::Internal);
    }

    /// What kube-apiserver and etcd's client look for, spelled out once more.
    #[test]
    fn the_errors_clients_act_on_keep_code_and_text() {
        for (error, code, text) in [
            (EtcdError::Compacted, 11, "etcdserver: mvcc: required revision has been compacted"),
            (EtcdError::FutureRev, 11, "etcdserver: mvcc: required revision is a future revision"),
            (EtcdError::LeaseNotFound, 5, "etcdserver: requested lease not found"),
            (EtcdError::NoSpace, 8, "etcdserver: mvcc: database space exceeded"),
            (EtcdError::NoLeader, 14, "etcdserver: no leader"),
            (EtcdError::LeaderChanged, 14, "etcdserver: leader changed"),
            (EtcdError::InvalidAuthToken, 16, "etcdserver: invalid auth token"),
            (EtcdError::AuthOldRevision, 3, "etcdserver: revision of auth store is old"),
            (EtcdError::Corrupt, 15, "etcdserver: corrupt cluster"),
        ] {
            assert_eq!((error.code() as u8, error.message()), (code, text));
        }
    }

    #[test]
    fn codes_have_grpcs_numbers() {
        for (number, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, number);
            assert_eq!(Code::from_number(number as u32), code);
        }
        assert_eq!(Code::from_number(17), Code::Unknown);
        assert_eq!(Code::Ok.to_string(), "OK");
        assert_eq!(Code::Unauthenticated as u8, 16);
    }
}
