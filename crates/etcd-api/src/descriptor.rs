//! The descriptors of the API, as gRPC server reflection hands them out.
//!
//! Invariant: files are handed out byte for byte as they were generated. The reflection service itself, its stream and
//! its error answers, is left to the server.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto};

/// An encoded `google.protobuf.FileDescriptorSet` with every file of the API, without comments.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");

/// A `FileDescriptorSet` that leaves its files encoded.
#[derive(Clone, PartialEq, Message)]
struct EncodedFiles {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    file: Vec<Bytes>,
}

/// Finds files by name and by what they declare.
#[derive(Debug)]
pub struct Reflection {
    /// Encoded files in the order of the set, each after the files it imports.
    files: Vec<Bytes>,
    /// For each file, what to answer: the file itself, then all it imports, directly or not.
    closures: Vec<Vec<usize>>,
    by_name: HashMap<String, usize>,
    by_symbol: HashMap<String, usize>,
    messages: HashSet<String>,
    services: Vec<String>,
}

impl Reflection {
    /// Decodes the descriptors and indexes them; takes a moment, so make one and keep it.
    pub fn new() -> Self {
        let files = EncodedFiles::decode(Bytes::from_static(FILE_DESCRIPTOR_SET))
            .expect("the checked-in descriptors decode: a test does the same")
            .file;
        let mut reflection = Self {
            closures: Vec::with_capacity(files.len()),
            by_name: HashMap::new(),
            by_symbol: HashMap::new(),
            messages: HashSet::new(),
            services: Vec::new(),
            files: Vec::with_capacity(files.len()),
        };
        for encoded in files {
            let file = FileDescriptorProto::decode(encoded.clone())
                .expect("the checked-in descriptors decode: a test does the same");
            reflection.add(encoded, &file);
        }
        reflection.services.sort_unstable();
        reflection
    }

    /// Full names of all services, sorted.
    pub fn services(&self) -> &[String] {
        &self.services
    }

    /// The file with this name, then all it imports; each an encoded `FileDescriptorProto`.
    pub fn file_by_filename(&self, name: &str) -> Option<Vec<Bytes>> {
        self.by_name.get(name).map(|index| self.with_imports(*index))
    }

    /// The file that declares `symbol`, then all it imports; each an encoded `FileDescriptorProto`.
    ///
    /// A symbol is the full name, without a leading dot, of a message, field, oneof, enum, enum value, service or
    /// method.
    pub fn file_containing_symbol(&self, symbol: &str) -> Option<Vec<Bytes>> {
        self.by_symbol.get(symbol).map(|index| self.with_imports(*index))
    }

    /// Whether this is the full name of a message. The API has no extensions, so the extension numbers of a message
    /// are an empty list, and those of anything else are not found.
    pub fn is_message(&self, name: &str) -> bool {
        self.messages.contains(name)
    }

    fn with_imports(&self, index: usize) -> Vec<Bytes> {
        self.closures[index].iter().map(|index| self.files[*index].clone()).collect()
    }

    fn add(&mut self, encoded: Bytes, file: &FileDescriptorProto) {
        let index = self.files.len();
        let mut closure = vec![index];
        for import in &file.dependency {
            let import = self.by_name.get(import).expect("a file stands after the files it imports: a test checks");
            for file in &self.closures[*import] {
                if !closure.contains(file) {
                    closure.push(*file);
                }
            }
        }
        self.files.push(encoded);
        self.closures.push(closure);
        self.by_name.insert(file.name().to_owned(), index);

        let package = file.package();
        for message in &file.message_type {
            self.add_message(package, message, index);
        }
        for declared in &file.enum_type {
            self.add_enum(package, declared, index);
        }
        for service in &file.service {
            let name = full_name(package, service.name());
            for method in &service.method {
                self.by_symbol.insert(full_name(&name, method.name()), index);
            }
            self.services.push(name.clone());
            self.by_symbol.insert(name, index);
        }
    }

    fn add_message(&mut self, scope: &str, message: &DescriptorProto, index: usize) {
        let name = full_name(scope, message.name());
        let fields = message.field.iter().map(|field| field.name());
        let oneofs = message.oneof_decl.iter().map(|oneof| oneof.name());
        for member in fields.chain(oneofs) {
            self.by_symbol.insert(full_name(&name, member), index);
        }
        for nested in &message.nested_type {
            self.add_message(&name, nested, index);
        }
        for nested in &message.enum_type {
            self.add_enum(&name, nested, index);
        }
        self.messages.insert(name.clone());
        self.by_symbol.insert(name, index);
    }

    fn add_enum(&mut self, scope: &str, declared: &EnumDescriptorProto, index: usize) {
        // protobuf names the values of an enum beside the enum, not below it.
        for value in &declared.value {
            self.by_symbol.insert(full_name(scope, value.name()), index);
        }
        self.by_symbol.insert(full_name(scope, declared.name()), index);
    }
}

impl Default for Reflection {
    fn default() -> Self {
        Self::new()
    }
}

fn full_name(scope: &str, name: &str) -> String {
    format!("{scope}.{name}")
}

#[cfg(test)]
mod tests {
    use prost_types::FileDescriptorSet;

    use super::*;

    fn names(files: &[Bytes]) -> Vec<String> {
        files.iter().map(|file| FileDescriptorProto::decode(file.clone()).unwrap().name().to_owned()).collect()
    }

    #[test]
    fn a_file_stands_after_the_files_it_imports() {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        for (index, file) in set.file.iter().enumerate() {
            for import in &file.dependency {
                let found = set.file[..index].iter().any(|earlier| earlier.name() == import);
                assert!(found, "{} imports {import}", file.name());
            }
        }
    }

    #[test]
    fn all_services_are_listed_in_order() {
        let services = [
            "etcdserverpb.Auth",
            "etcdserverpb.Cluster",
            "etcdserverpb.KV",
            "etcdserverpb.Lease",
            "etcdserverpb.Maintenance",
            "etcdserverpb.Watch",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            "v3electionpb.Election",
            "v3lockpb.Lock",
        ];
        assert_eq!(Reflection::new().services(), services);
    }

    #[test]
    fn a_file_comes_with_its_imports_each_once_and_unchanged() {
        let reflection = Reflection::new();
        let election = reflection.file_by_filename("v3electionpb/v3election.proto").unwrap();
        let mut found = names(&election);
        assert_eq!(found[0], "v3electionpb/v3election.proto");
        found[1..].sort();
        let imports = ["authpb/auth.proto", "etcdserverpb/rpc.proto", "mvccpb/kv.proto"];
        assert_eq!(found[1..], imports);

        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        for file in &set.file {
            let encoded = &reflection.file_by_filename(file.name()).unwrap()[0];
            assert_eq!(*encoded, file.encode_to_vec(), "{}", file.name());
        }
        assert_eq!(reflection.file_by_filename("rpc.proto"), None);
    }

    #[test]
    fn every_kind_of_symbol_leads_to_its_file() {
        let reflection = Reflection::new();
        for (symbol, file) in [
            ("etcdserverpb.KV", "etcdserverpb/rpc.proto"),
            ("etcdserverpb.KV.Range", "etcdserverpb/rpc.proto"),
            ("etcdserverpb.RangeRequest", "etcdserverpb/rpc.proto"),
            ("etcdserverpb.RangeRequest.range_end", "etcdserverpb/rpc.proto"),
            ("etcdserverpb.RangeRequest.SortOrder", "etcdserverpb/rpc.proto"),
            ("etcdserverpb.RangeRequest.ASCEND", "etcdserverpb/rpc.proto"),
            ("etcdserverpb.WatchRequest.request_union", "etcdserverpb/rpc.proto"),
            ("etcdserverpb.AlarmType", "etcdserverpb/rpc.proto"),
            ("etcdserverpb.NOSPACE", "etcdserverpb/rpc.proto"),
            ("mvccpb.KeyValue", "mvccpb/kv.proto"),
            ("grpc.reflection.v1.ServerReflection", "grpc/reflection/v1/reflection.proto"),
            ("grpc.health.v1.HealthListResponse.StatusesEntry", "grpc/health/v1/health.proto"),
        ] {
            let files = reflection.file_containing_symbol(symbol).unwrap_or_else(|| panic!("{symbol} not found"));
            assert_eq!(names(&files)[0], file, "{symbol}");
        }
        for symbol in ["", "etcdserverpb", "KV", ".etcdserverpb.KV", "etcdserverpb.KV.Get", "etcdserverpb.Nothing"] {
            assert_eq!(reflection.file_containing_symbol(symbol), None, "{symbol}");
        }
    }

    #[test]
    fn only_messages_are_messages() {
        let reflection = Reflection::new();
        assert!(reflection.is_message("mvccpb.Event"));
        assert!(reflection.is_message("grpc.health.v1.HealthListResponse.StatusesEntry"));
        for name in ["mvccpb.Event.EventType", "etcdserverpb.KV", "mvccpb.Event.kv", "nothing"] {
            assert!(!reflection.is_message(name), "{name}");
        }
    }
}
