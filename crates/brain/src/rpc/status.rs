//! The gRPC status of each error: etcd's code and text wherever etcd has one.

use kubewharf_etcd_api::{EtcdError, Method};
use kubewharf_grpc::{Code, Status};

use crate::error::{Error, Invalid};

/// The status that tells a client of `error`.
pub(crate) fn status(error: &Error) -> Status {
    let etcd = match error {
        Error::Invalid(Invalid::EmptyKey) => EtcdError::EmptyKey,
        Error::Invalid(Invalid::ValueProvided) => EtcdError::ValueProvided,
        Error::Invalid(Invalid::LeaseProvided) => EtcdError::LeaseProvided,
        Error::Invalid(Invalid::SortOption) => EtcdError::InvalidSortOption,
        Error::Invalid(Invalid::TooManyOperations { .. }) => EtcdError::TooManyOps,
        Error::Invalid(Invalid::EmptyOperation) | Error::KeyNotFound => EtcdError::KeyNotFound,
        Error::Invalid(Invalid::DuplicateKey) => EtcdError::DuplicateKey,
        Error::Compacted => EtcdError::Compacted,
        Error::FutureRevision => EtcdError::FutureRev,
        Error::LeaseNotFound => EtcdError::LeaseNotFound,
        Error::LeaseExists => EtcdError::LeaseExist,
        Error::LeaseTtlTooLarge => EtcdError::LeaseTtlTooLarge,
        Error::NoSpace(_) => EtcdError::NoSpace,
        Error::RequestTooLarge { .. } => EtcdError::RequestTooLarge,
        Error::TooManyRequests { .. } => EtcdError::TooManyRequests,
        // Nothing was written: that is what a member concludes which has forwarded a write.
        Error::NotLeader => EtcdError::LeaderChanged,
        Error::Api(error) => error.clone(),
        // With the name of the row, so that somebody can do something about it.
        Error::Corrupt(text) => return Status::new(Code::DataLoss, format!("{}: {text}", EtcdError::Corrupt)),
        Error::Invalid(Invalid::KeyTooLong { .. }) | Error::TooLarge(_) => {
            return Status::new(Code::InvalidArgument, format!("etcdserver: {error}"));
        }
        Error::ListTooLarge { .. } | Error::ListsBusy { .. } | Error::ResponseTooLarge { .. } => {
            return Status::new(Code::ResourceExhausted, format!("etcdserver: {error}"));
        }
        Error::OutcomeUnknown(_) | Error::Unavailable(_) => {
            return Status::new(Code::Unavailable, format!("etcdserver: {error}"));
        }
        Error::Unimplemented(text) => return Status::new(Code::Unimplemented, *text),
    };
    Status::new(code(etcd.code()), etcd.to_string())
}

/// The status of a message that can't be decoded; the text is grpc-go's.
pub(crate) fn malformed(error: &prost::DecodeError) -> Status {
    Status::new(Code::Internal, format!("grpc: error unmarshalling request: {error}"))
}

/// The status of a method that the API has and this server does not.
pub(crate) fn not_built(method: Method) -> Status {
    Status::new(Code::Unimplemented, format!("{} is not built yet", method.path()))
}

fn code(code: kubewharf_etcd_api::Code) -> Code {
    use kubewharf_etcd_api::Code as Api;
    match code {
        Api::Ok => Code::Ok,
        Api::Canceled => Code::Cancelled,
        Api::Unknown => Code::Unknown,
        Api::InvalidArgument => Code::InvalidArgument,
        Api::DeadlineExceeded => Code::DeadlineExceeded,
        Api::NotFound => Code::NotFound,
        Api::AlreadyExists => Code::AlreadyExists,
        Api::PermissionDenied => Code::PermissionDenied,
        Api::ResourceExhausted => Code::ResourceExhausted,
        Api::FailedPrecondition => Code::FailedPrecondition,
        Api::Aborted => Code::Aborted,
        Api::OutOfRange => Code::OutOfRange,
        Api::Unimplemented => Code::Unimplemented,
        Api::Internal => Code::Internal,
        Api::Unavailable => Code::Unavailable,
        Api::DataLoss => Code::DataLoss,
        Api::Unauthenticated => Code::Unauthenticated,
    }
}
