//! The objects of the benchmark: their keys and values, and what is known of each.
//!
//! Keys look like those of pods, `/registry/pods/NAMESPACE/NAME`, about a hundred to a namespace. Names are in no order,
//! as in a cluster, so neighbours in time are not neighbours in the key space.
//!
//! Invariant: what an object's value must be follows from its number and its version here, so that every answer can be
//! checked.

use anyhow::{Context as _, Result, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};

/// The resource whose objects are loaded, listed and watched.
pub const PREFIX: &str = "/registry/pods/";
/// The resource whose objects have leases.
pub const LEASED_PREFIX: &str = "/registry/events/";
/// Objects in a namespace.
const NAMESPACE_OBJECTS: u64 = 100;
/// What a key needs to be told from all others.
pub const KEY_BYTES_MIN: usize = LEASED_PREFIX.len() + "ns-00000/".len() + 16;
/// What a value needs to be checked.
pub const VALUE_BYTES_MIN: usize = HEAD_BYTES;
/// Number, version and time at the front of a value.
const HEAD_BYTES: usize = 24;

/// What is known of an object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Object {
    /// The revision of its last change; 0 while it does not exist.
    pub revision: i64,
    /// How often it was changed since it was made.
    pub version: u32,
}

/// All objects under [`PREFIX`], by number.
#[derive(Debug)]
pub struct Objects {
    objects: Vec<Object>,
    loaded: u64,
    shape: Shape,
}

/// How keys and values are made.
#[derive(Debug, Clone)]
pub struct Shape {
    key_bytes: usize,
    value_bytes: usize,
    namespaces: u64,
    /// What follows the head of each value.
    filler: Bytes,
}

impl Objects {
    /// `loaded` objects that do not exist yet.
    pub fn new(loaded: u64, key_bytes: usize, value_bytes: usize) -> Self {
        let filler = (0..value_bytes as u64).map(|index| scatter(index) as u8).collect();
        let namespaces = loaded.div_ceil(NAMESPACE_OBJECTS);
        let objects = vec![Object::default(); loaded as usize];
        Self { objects, loaded, shape: Shape { key_bytes, value_bytes, namespaces, filler } }
    }

    /// How many are loaded before anything is measured. Their numbers are those below this.
    pub fn loaded(&self) -> u64 {
        self.loaded
    }

    /// How keys and values are made.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// How many exist.
    pub fn existing(&self) -> u64 {
        self.objects.iter().filter(|object| object.revision != 0).count() as u64
    }

    /// Makes room for objects with numbers up to `end`.
    pub fn reserve(&mut self, end: u64) {
        self.objects.resize((end as usize).max(self.objects.len()), Object::default());
    }

    /// The object with that number.
    pub fn get(&self, number: u64) -> Object {
        self.objects[number as usize]
    }

    /// The object with that number, to change.
    pub fn get_mut(&mut self, number: u64) -> &mut Object {
        &mut self.objects[number as usize]
    }

    /// How many loaded objects the namespace has, and its prefix.
    pub fn namespace(&self, turn: u64) -> (u64, Bytes) {
        let namespace = scatter(turn) % self.shape.namespaces;
        let more = u64::from(namespace < self.loaded % self.shape.namespaces);
        (self.loaded / self.shape.namespaces + more, format!("{PREFIX}ns-{namespace:05}/").into())
    }
}

impl Shape {
    /// The key of the object with that number.
    pub fn key(&self, number: u64) -> Bytes {
        self.key_under(PREFIX, number)
    }

    /// The key of the object with that number of another resource.
    pub fn key_under(&self, prefix: &str, number: u64) -> Bytes {
        let mut key = BytesMut::with_capacity(self.key_bytes);
        key.put_slice(prefix.as_bytes());
        key.put_slice(b"ns-");
        let namespace = number % self.namespaces;
        for power in [10_000, 1000, 100, 10, 1] {
            key.put_u8(b'0' + (namespace / power % 10) as u8);
        }
        key.put_u8(b'/');
        let name = scatter(number);
        for shift in (0..64).step_by(4).rev() {
            key.put_u8(b"0123456789abcdef"[(name >> shift & 15) as usize]);
        }
        key.put_bytes(b'x', self.key_bytes - key.len());
        key.freeze()
    }

    /// The value of an object; `time_ns` is the reader's to use.
    pub fn value(&self, number: u64, version: u32, time_ns: u64) -> Bytes {
        let mut value = BytesMut::with_capacity(self.value_bytes);
        value.put_u64(number);
        value.put_u64(u64::from(version));
        value.put_u64(time_ns);
        value.put_slice(&self.filler[HEAD_BYTES..]);
        value.freeze()
    }

    /// Checks that a value is that of this object in this version.
    ///
    /// # Errors
    /// When it is another.
    pub fn check_value(&self, value: &[u8], number: u64, version: u32) -> Result<()> {
        ensure!(value.len() == self.value_bytes, "a value of {} bytes, not {}", value.len(), self.value_bytes);
        let found = (head_number(value, 0)?, head_number(value, 8)?);
        let expected = (number, u64::from(version));
        ensure!(found == expected, "the value of object and version {found:?} where {expected:?} belongs");
        ensure!(value[HEAD_BYTES..] == self.filler[HEAD_BYTES..], "the value of object {number} is damaged");
        Ok(())
    }
}

/// The time in a value.
///
/// # Errors
/// When the value is none of ours.
pub fn value_time_ns(value: &[u8]) -> Result<u64> {
    head_number(value, 16)
}

fn head_number(value: &[u8], at: usize) -> Result<u64> {
    let bytes = value.get(at..at + 8).context("a value is too short")?;
    Ok(u64::from_be_bytes(bytes.try_into().context("eight bytes are eight bytes")?))
}

/// Turns numbers into others that show no order, one to one (the finalizer of splitmix64).
pub fn scatter(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The end of the range of all keys with a prefix.
///
/// # Panics
/// When the prefix ends with the byte 0xff; ours end with a slash.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    let last = end.last_mut().expect("a prefix is not empty");
    *last = last.checked_add(1).expect("a prefix ends with a slash");
    end.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn keys_have_the_wanted_length_and_differ_and_namespaces_have_the_told_size() {
        let objects = Objects::new(2_050, 70, 512);
        let keys: BTreeSet<Bytes> = (0..2_050).map(|number| objects.shape().key(number)).collect();
        assert_eq!(keys.len(), 2_050);
        assert!(keys.iter().all(|key| key.len() == 70 && key.starts_with(PREFIX.as_bytes())));
        for turn in 0..50 {
            let (count, prefix) = objects.namespace(turn);
            let range = prefix.clone()..prefix_end(&prefix);
            assert_eq!(keys.range(range).count() as u64, count, "{prefix:?}");
        }
        assert_eq!(objects.shape().key_under(LEASED_PREFIX, 7).len(), 70);
        let shortest = Objects::new(100, KEY_BYTES_MIN, VALUE_BYTES_MIN);
        assert_eq!(shortest.shape().key_under(LEASED_PREFIX, 7).len(), KEY_BYTES_MIN);
    }

    #[test]
    fn a_value_is_that_of_one_object_in_one_version() {
        let objects = Objects::new(100, 70, 512);
        let shape = objects.shape();
        let value = shape.value(3, 9, 77);
        shape.check_value(&value, 3, 9).unwrap();
        assert_eq!(value_time_ns(&value).unwrap(), 77);
        assert!(shape.check_value(&value, 3, 8).is_err());
        assert!(shape.check_value(&value, 4, 9).is_err());
        assert!(shape.check_value(&value[1..], 3, 9).is_err());
        let mut damaged = value.to_vec();
        damaged[500] ^= 1;
        assert!(shape.check_value(&damaged, 3, 9).is_err());
    }

    #[test]
    fn objects_that_are_not_made_yet_do_not_exist() {
        let mut objects = Objects::new(10, 70, 512);
        objects.reserve(12);
        objects.get_mut(11).revision = 5;
        assert_eq!((objects.existing(), objects.loaded()), (1, 10));
    }
}
