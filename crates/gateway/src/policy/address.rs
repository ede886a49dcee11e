//! Sets of client addresses.
//!
//! Invariant: an IPv4 address is the same whether a socket tells it as IPv4 or as IPv6; the two families are otherwise
//! apart, so that `::/0` holds no IPv4 address.

use std::net::IpAddr;
use std::str::FromStr;

use super::spec::{ALL, negative};

/// Addresses, as ranges that neither touch nor overlap; sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    v4: Box<[(u128, u128)]>,
    v6: Box<[(u128, u128)]>,
}

impl Ranges {
    pub(crate) fn new(blocks: impl Iterator<Item = Block>) -> Self {
        let (v4, v6): (Vec<Block>, Vec<Block>) = blocks.partition(|block| block.address.is_ipv4());
        Self { v4: merged(v4), v6: merged(v6) }
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let (address, ranges) = match address.to_canonical() {
            IpAddr::V4(address) => (u128::from(u32::from(address)), &self.v4),
            IpAddr::V6(address) => (u128::from(address), &self.v6),
        };
        let above = ranges.partition_point(|(first, _)| *first <= address);
        above > 0 && address <= ranges[above - 1].1
    }
}

fn merged(blocks: Vec<Block>) -> Box<[(u128, u128)]> {
    let mut ranges: Vec<(u128, u128)> = blocks.into_iter().map(|block| block.range()).collect();
    ranges.sort_unstable();
    ranges.dedup_by(|next, previous| {
        let joined = next.0 <= previous.1.saturating_add(1);
        if joined {
            previous.1 = previous.1.max(next.1);
        }
        joined
    });
    ranges.into()
}

/// A block of addresses, such as 10.0.0.0/8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    address: IpAddr,
    prefix_bits: u8,
}

impl Block {
    /// Reads `address` or `address/bits`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match bits {
            None => width,
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse().ok().filter(|bits| *bits <= width)?
            }
            Some(_) => return None,
        };
        match address.to_canonical() {
            // IPv4 written as IPv6.
            canonical @ IpAddr::V4(_) if address.is_ipv6() && prefix_bits >= 96 => {
                Some(Self { address: canonical, prefix_bits: prefix_bits - 96 })
            }
            _ => Some(Self { address, prefix_bits }),
        }
    }

    /// Whether bits are set behind the prefix, where they mean nothing.
    pub(super) fn has_host_bits(self) -> bool {
        self.range().0 != self.number()
    }

    fn number(self) -> u128 {
        match self.address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        }
    }

    fn range(self) -> (u128, u128) {
        let width: u32 = if self.address.is_ipv4() { 32 } else { 128 };
        let host_bits = width - u32::from(self.prefix_bits);
        let host_mask = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |bit| bit - 1);
        let number = self.number();
        (number & !host_mask, number | host_mask)
    }
}

impl FromStr for Block {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address or block of addresses such as 10.0.0.0/8 or ::1");
        Self::parse(text).ok_or_else(wrong)
    }
}

/// The values of `cidrs`.
#[derive(Debug)]
pub(super) enum AddressTerms {
    All,
    Nothing,
    AnyOf(Box<AddressSet>),
    NoneOf(Box<AddressSet>),
}

/// Addresses of either family.
#[derive(Debug)]
pub(super) struct AddressSet(Ranges);

impl AddressTerms {
    /// Compiles the values. The first that is no address block is the error.
    pub(super) fn new(values: &[String]) -> Result<Self, usize> {
        if values.is_empty() || values.iter().any(|value| value == ALL) {
            return Ok(Self::All);
        }
        let is_positive = values.iter().any(|value| negative(value).is_none());
        let mut blocks = Vec::with_capacity(values.len());
        for (index, value) in values.iter().enumerate() {
            let (is_negative, text) = negative(value).map_or((false, value.as_str()), |text| (true, text));
            if text == ALL && !is_positive {
                return Ok(Self::Nothing);
            }
            let block = Block::parse(text).ok_or(index)?;
            if is_negative != is_positive {
                blocks.push(block);
            }
        }
        let set = Box::new(AddressSet(Ranges::new(blocks.into_iter())));
        Ok(if is_positive { Self::AnyOf(set) } else { Self::NoneOf(set) })
    }

    pub(super) fn matches(&self, address: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::AnyOf(set) => set.0.contains(address),
            Self::NoneOf(set) => !set.0.contains(address),
        }
    }

    pub(super) fn is_all(&self) -> bool {
        matches!(self, Self::All)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terms(values: &[&str]) -> AddressTerms {
        AddressTerms::new(&values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn blocks_hold_their_own_family_only_and_mapped_ipv4_is_ipv4() {
        let client = |text: &str| text.parse::<IpAddr>().unwrap();
        let inner = terms(&["10.0.0.0/8", "192.168.1.7", "2001:db8::/32"]);
        for address in ["10.255.0.1", "::ffff:10.1.2.3", "192.168.1.7", "2001:db8:1::1"] {
            assert!(inner.matches(client(address)), "{address}");
        }
        for address in ["11.0.0.0", "192.168.1.8", "2001:db9::", "::a00:1"] {
            assert!(!inner.matches(client(address)), "{address}");
        }
        assert!(!terms(&["::/0"]).matches(client("10.0.0.1")));
        assert!(terms(&["::ffff:10.0.0.0/104"]).matches(client("10.9.9.9")));
        assert!(terms(&["0.0.0.0/0"]).matches(client("255.255.255.255")));
        assert!(terms(&["::/0"]).matches(client("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")));
        let outer = terms(&["-10.0.0.0/8", "-127.0.0.1"]);
        assert!(!outer.matches(client("10.0.0.1")) && !outer.matches(client("127.0.0.1")));
        assert!(outer.matches(client("127.0.0.2")));
        assert!(terms(&["-10.0.0.0/8", "10.0.0.1"]).matches(client("10.0.0.1")));
        assert!(!terms(&["-*"]).matches(client("10.0.0.1")));
    }

    #[test]
    fn what_is_no_block_is_refused_by_its_place() {
        for text in ["10.0.0.0/33", "10.0.0/8", "host", "10.0.0.0/+8", "10.0.0.0/", "::/129", ""] {
            assert_eq!(AddressTerms::new(&["127.0.0.1".into(), text.into()]).err(), Some(1), "{text}");
        }
    }

    proptest! {
        #[test]
        fn merged_ranges_hold_what_the_blocks_hold(
            blocks in prop::collection::vec((any::<u32>(), 0_u8..=32), 1..20),
            addresses in prop::collection::vec(any::<u32>(), 20),
        ) {
            let texts: Vec<String> =
                blocks.iter().map(|(address, bits)| format!("{}/{bits}", std::net::Ipv4Addr::from(*address))).collect();
            let terms = AddressTerms::new(&texts).unwrap();
            let near = blocks.iter().flat_map(|(base, _)| [*base, base.wrapping_add(1), base.wrapping_sub(1)]);
            for address in addresses.iter().copied().chain(near) {
                let expected = blocks.iter().any(|(base, bits)| {
                    let mask = u32::MAX.checked_shl(32 - u32::from(*bits)).unwrap_or(0);
                    base & mask == address & mask
                });
                prop_assert_eq!(terms.matches(IpAddr::V4(address.into())), expected);
            }
        }
    }
}
