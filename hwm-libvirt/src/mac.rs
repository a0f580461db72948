//! A machine's hardware address, made from its id, so that it stays when the domain is defined again.

use std::fmt;

use hwm_core::id::ResourceId;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address of a machine: the last 40 bits of its id, which are random, behind a byte that marks the address
    /// as locally administered.
    pub(crate) const fn of(id: ResourceId) -> Self {
        let b = id.as_u128().to_be_bytes();
        Self([0x52, b[11], b[12], b[13], b[14], b[15]])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_address_is_unicast_and_locally_administered(id: u128) {
            let text = MacAddress::of(ResourceId::from_u128(id)).to_string();
            let first = u8::from_str_radix(&text[..2], 16).unwrap();
            prop_assert_eq!(first & 0b11, 0b10);
            prop_assert_eq!(text.len(), 17);
        }
    }
}
