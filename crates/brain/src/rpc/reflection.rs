//! gRPC server reflection, v1 and v1alpha: the same messages under two names.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use kubewharf_etcd_api::descriptor::Reflection;
use kubewharf_etcd_api::reflection::v1::server_reflection_request::MessageRequest;
use kubewharf_etcd_api::reflection::v1::server_reflection_response::MessageResponse;
use kubewharf_etcd_api::reflection::v1::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest,
    ServerReflectionResponse, ServiceResponse,
};
use kubewharf_grpc::{CallContext, Code, RequestStream, ResponseSink, Status};
use prost::Message;

use super::server::Server;
use super::status;

static DESCRIPTORS: LazyLock<Reflection> = LazyLock::new(Reflection::new);

/// Serves ServerReflectionInfo of either version: each question is answered in its turn.
pub(super) async fn serve(
    _server: Arc<Server>,
    _context: CallContext,
    mut requests: RequestStream,
    responses: ResponseSink,
) {
    let end = loop {
        let message = tokio::select! {
            message = requests.next() => message,
            () = responses.draining() => break Status::new(Code::Unavailable, "the server is stopping"),
        };
        let request = match message {
            Some(Ok(message)) => ServerReflectionRequest::decode(message).map_err(|error| status::malformed(&error)),
            Some(Err(status)) => Err(status),
            None => break Status::ok(),
        };
        let request = match request {
            Ok(request) => request,
            Err(status) => break status,
        };
        let message_response = Some(answer(&DESCRIPTORS, request.message_request.as_ref()));
        let valid_host = request.host.clone();
        let response = ServerReflectionResponse { valid_host, original_request: Some(request), message_response };
        if responses.send(response.encode_to_vec().into()).await.is_err() {
            return;
        }
    };
    responses.finish(end);
}

fn answer(descriptors: &Reflection, request: Option<&MessageRequest>) -> MessageResponse {
    match request {
        Some(MessageRequest::FileByFilename(name)) => files(descriptors.file_by_filename(name), name),
        Some(MessageRequest::FileContainingSymbol(symbol)) => files(descriptors.file_containing_symbol(symbol), symbol),
        Some(MessageRequest::FileContainingExtension(extension)) => files(None, &extension.containing_type),
        Some(MessageRequest::AllExtensionNumbersOfType(name)) if descriptors.is_message(name) => {
            MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                base_type_name: name.clone(),
                extension_number: Vec::new(),
            })
        }
        Some(MessageRequest::AllExtensionNumbersOfType(name)) => files(None, name),
        Some(MessageRequest::ListServices(_)) => MessageResponse::ListServicesResponse(ListServiceResponse {
            service: descriptors.services().iter().map(|name| ServiceResponse { name: name.clone() }).collect(),
        }),
        None => error(Code::InvalidArgument, "the request asks nothing".to_owned()),
    }
}

fn files(found: Option<Vec<Bytes>>, name: &str) -> MessageResponse {
    match found {
        Some(file_descriptor_proto) => {
            MessageResponse::FileDescriptorResponse(FileDescriptorResponse { file_descriptor_proto })
        }
        None => error(Code::NotFound, format!("{name} not found")),
    }
}

fn error(code: Code, error_message: String) -> MessageResponse {
    MessageResponse::ErrorResponse(ErrorResponse { error_code: code as i32, error_message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_and_symbols_are_found_and_others_are_not() {
        let descriptors = Reflection::new();
        let list = answer(&descriptors, Some(&MessageRequest::ListServices(String::new())));
        let MessageResponse::ListServicesResponse(list) = list else { panic!("{list:?}") };
        assert!(list.service.iter().any(|service| service.name == "etcdserverpb.KV"));
        let symbol = MessageRequest::FileContainingSymbol("etcdserverpb.KV".to_owned());
        let MessageResponse::FileDescriptorResponse(files) = answer(&descriptors, Some(&symbol)) else {
            panic!("no file for a service")
        };
        assert!(files.file_descriptor_proto.len() > 1, "the imports come along");
        let unknown = MessageRequest::FileByFilename("no.proto".to_owned());
        let MessageResponse::ErrorResponse(error) = answer(&descriptors, Some(&unknown)) else { panic!("found") };
        assert_eq!(error.error_code, 5);
    }
}
