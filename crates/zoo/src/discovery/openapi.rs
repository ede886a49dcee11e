//! OpenAPI documents for tenants: the paths that they have, and the schemas that these paths need.
//!
//! Invariant: a path that tenants do not have is in none of them, nor is a schema that only such paths need. A document in which all is the
//! tenant's stays as it is, byte by byte.

use std::collections::HashMap;

use memchr::memchr;
use memchr::memmem::Finder;

use super::json::{self, Edit};
use super::paths::{Access, access, has_document};
use super::proto;
use super::resources::Resources;
use super::{Encoding, Malformed};

/// What the versions of OpenAPI have different.
pub(super) struct Dialect {
    /// What a reference to a schema begins with.
    reference: &'static str,
    /// The members that lead to the schemas.
    schemas_json: &'static [&'static str],
    /// The numbers of the fields that lead to the paths, by gnostic's messages.
    paths_proto: [u32; 2],
    /// The numbers of the fields that lead to the schemas.
    schemas_proto: &'static [u32],
    /// In a path's item: the methods that write.
    writing_proto: &'static [u32],
}

/// OpenAPI 2.
pub(super) const V2: Dialect = Dialect {
    reference: "#/definitions/",
    schemas_json: &["definitions"],
    paths_proto: [8, 2],
    schemas_proto: &[9, 1],
    writing_proto: &[3, 4, 5, 6, 7, 8],
};

/// OpenAPI 3.
pub(super) const V3: Dialect = Dialect {
    reference: "#/components/schemas/",
    schemas_json: &["components", "schemas"],
    paths_proto: [4, 1],
    schemas_proto: &[5, 1, 1],
    writing_proto: &[5, 6, 7, 8, 9, 10, 11],
};

/// The same in JSON.
const WRITING_JSON: &[&str] = &["put", "post", "delete", "options", "head", "patch", "trace"];
/// In all of gnostic's maps: the field of the name, and of the value.
const NAME: u32 = 1;
const VALUE: u32 = 2;

/// The document as tenants have it.
pub(super) fn document(
    document: &[u8],
    encoding: Encoding,
    dialect: &Dialect,
    resources: &Resources,
) -> Result<Edit, Malformed> {
    match encoding {
        Encoding::Json => json_document(document, dialect, resources),
        Encoding::Protobuf => proto_document(document, dialect, resources),
    }
}

/// The index of OpenAPI 3: the documents that tenants have, at the URLs with the hashes that tenants see.
pub(super) fn index(
    document: &[u8],
    resources: &Resources,
    hash_of: impl Fn(&str, &str) -> String,
) -> Result<Edit, Malformed> {
    json::edit_object(document, |key, paths| {
        if key != "paths" {
            return Ok(Edit::Keep);
        }
        json::edit_object(paths, |name, entry| {
            if !has_document(name, resources) {
                return Ok(Edit::Drop);
            }
            json::edit_object(entry, |key, url| {
                if key != "serverRelativeURL" {
                    return Ok(Edit::Keep);
                }
                let url = json::text(url)?;
                let url = match url.split_once("?hash=") {
                    Some((path, hash)) => format!("{path}?hash={}", hash_of(name, hash)),
                    None => url.into_owned(),
                };
                Ok(Edit::Replace(json::quoted(&url)))
            })
        })
    })
}

fn json_document(document: &[u8], dialect: &Dialect, resources: &Resources) -> Result<Edit, Malformed> {
    let paths = json::member(document, "paths")?.ok_or(Malformed("an OpenAPI document without paths"))?;
    let paths = json::edit_object(paths, |path, item| {
        Ok(match access(path, resources) {
            Access::None => Edit::Drop,
            Access::All => Edit::Keep,
            Access::Read => json::edit_object(item, |method, _| {
                Ok(if WRITING_JSON.contains(&method) { Edit::Drop } else { Edit::Keep })
            })?,
        })
    })?;
    let Edit::Replace(paths) = paths else { return Ok(Edit::Keep) };

    let mut schemas = Schemas { roots: vec![&paths], ..Schemas::new(dialect.reference) };
    for member in json::members(document)? {
        let (key, value) = member?;
        match &*key {
            "paths" => {}
            key if key == dialect.schemas_json[0] => add_json_schemas(value, &dialect.schemas_json[1..], &mut schemas)?,
            _ => schemas.roots.push(value),
        }
    }
    schemas.find_needed(references_in_json);
    json::edit_object(document, |key, value| match key {
        "paths" => Ok(Edit::Replace(paths.clone())),
        key if key == dialect.schemas_json[0] => without_json_schemas(value, &dialect.schemas_json[1..], &schemas),
        _ => Ok(Edit::Keep),
    })
}

fn add_json_schemas<'a>(value: &'a [u8], way: &[&str], schemas: &mut Schemas<'a>) -> Result<(), Malformed> {
    for member in json::members(value)? {
        let (key, value) = member?;
        match way.split_first() {
            None => schemas.add(&key, value),
            Some((first, way)) if key == *first => add_json_schemas(value, way, schemas)?,
            Some(_) => schemas.roots.push(value),
        }
    }
    Ok(())
}

fn without_json_schemas(value: &[u8], way: &[&str], schemas: &Schemas<'_>) -> Result<Edit, Malformed> {
    json::edit_object(value, |key, value| match way.split_first() {
        None => Ok(if schemas.is_needed(key) { Edit::Keep } else { Edit::Drop }),
        Some((first, way)) if key == *first => without_json_schemas(value, way, schemas),
        Some(_) => Ok(Edit::Keep),
    })
}

fn proto_document(document: &[u8], dialect: &Dialect, resources: &Resources) -> Result<Edit, Malformed> {
    let [paths_number, path_number] = dialect.paths_proto;
    let mut has_paths = false;
    let edited = proto::edit(document, |field| {
        if field.number != paths_number {
            return Ok(Edit::Keep);
        }
        has_paths = true;
        proto::edit(field.bytes()?, |field| {
            if field.number != path_number {
                return Ok(Edit::Keep);
            }
            let named = field.bytes()?;
            match access(proto::text_field(named, NAME)?, resources) {
                Access::None => Ok(Edit::Drop),
                Access::All => Ok(Edit::Keep),
                Access::Read => proto::edit(named, |field| match field.number {
                    VALUE => proto::edit(field.bytes()?, |method| {
                        Ok(if dialect.writing_proto.contains(&method.number) { Edit::Drop } else { Edit::Keep })
                    }),
                    _ => Ok(Edit::Keep),
                }),
            }
        })
    })?;
    if !has_paths {
        return Err(Malformed("an OpenAPI document without paths"));
    }
    let Edit::Replace(edited) = edited else { return Ok(Edit::Keep) };

    let mut schemas = Schemas::new(dialect.reference);
    add_proto_schemas(&edited, dialect.schemas_proto, &mut schemas)?;
    schemas.find_needed(references_in_proto);
    Ok(match without_proto_schemas(&edited, dialect.schemas_proto, &schemas)? {
        Edit::Keep => Edit::Replace(edited),
        without => without,
    })
}

fn add_proto_schemas<'a>(message: &'a [u8], way: &[u32], schemas: &mut Schemas<'a>) -> Result<(), Malformed> {
    for field in proto::fields(message) {
        let field = field?;
        match way {
            [last] if field.number == *last => {
                let schema = field.bytes()?;
                schemas.add(proto::text_field(schema, NAME)?, schema);
            }
            [first, way @ ..] if field.number == *first => add_proto_schemas(field.bytes()?, way, schemas)?,
            _ => schemas.roots.extend(field.content),
        }
    }
    Ok(())
}

fn without_proto_schemas(message: &[u8], way: &[u32], schemas: &Schemas<'_>) -> Result<Edit, Malformed> {
    proto::edit(message, |field| match way {
        [last] if field.number == *last => {
            let name = proto::text_field(field.bytes()?, NAME)?;
            Ok(if schemas.is_needed(name) { Edit::Keep } else { Edit::Drop })
        }
        [first, way @ ..] if field.number == *first => without_proto_schemas(field.bytes()?, way, schemas),
        _ => Ok(Edit::Keep),
    })
}

/// The schemas of a document, and which of them are needed: by what is no schema, or by a schema that is needed.
struct Schemas<'a> {
    reference: Finder<'static>,
    /// Each with whether it is needed.
    schemas: Vec<(&'a [u8], bool)>,
    number_of: HashMap<Box<[u8]>, usize>,
    /// What is no schema.
    roots: Vec<&'a [u8]>,
}

/// Finds what references to schemas name.
type References = for<'b> fn(&Finder<'_>, &'b [u8], &mut dyn FnMut(&'b [u8]));

impl<'a> Schemas<'a> {
    fn new(reference: &'static str) -> Self {
        Self { reference: Finder::new(reference), schemas: Vec::new(), number_of: HashMap::new(), roots: Vec::new() }
    }

    fn add(&mut self, name: &str, schema: &'a [u8]) {
        self.number_of.insert(name.as_bytes().into(), self.schemas.len());
        self.schemas.push((schema, false));
    }

    fn find_needed(&mut self, references: References) {
        let mut open = std::mem::take(&mut self.roots);
        while let Some(bytes) = open.pop() {
            references(&self.reference, bytes, &mut |name| {
                let Some(&number) = self.number_of.get(name) else { return };
                let (schema, is_needed) = &mut self.schemas[number];
                if !std::mem::replace(is_needed, true) {
                    open.push(schema);
                }
            });
        }
    }

    fn is_needed(&self, name: &str) -> bool {
        self.number_of.get(name.as_bytes()).is_some_and(|&number| self.schemas[number].1)
    }
}

/// In JSON the name ends with the string.
fn references_in_json<'b>(reference: &Finder<'_>, bytes: &'b [u8], found: &mut dyn FnMut(&'b [u8])) {
    for at in reference.find_iter(bytes) {
        let name = &bytes[at + reference.needle().len()..];
        if let Some(length) = memchr(b'"', name) {
            found(&name[..length]);
        }
    }
}

/// In protobuf the length of the string stands before it, in one byte or two. Bytes that only look like a length lead to no name that is
/// known, or to a schema that stays without need.
fn references_in_proto<'b>(reference: &Finder<'_>, bytes: &'b [u8], found: &mut dyn FnMut(&'b [u8])) {
    for at in reference.find_iter(bytes) {
        let (before, from) = bytes.split_at(at);
        let lengths = match *before {
            [.., low, high] if low >= 0x80 => [usize::from(high), usize::from(high) << 7 | usize::from(low & 0x7f)],
            [.., length] => [usize::from(length), 0],
            [] => continue,
        };
        for length in lengths {
            if let Some(name) = from.get(reference.needle().len()..length) {
                found(name);
            }
        }
    }
}
