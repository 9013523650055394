//! Another address for each address, so that those that share a network still share one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Key;

/// Replaces it: two addresses with the same first n bits get two that have the same first n bits (Xu, Fan, Ammar, Moon: "Prefix-preserving
/// IP address anonymization", 2002).
pub(super) fn map(address: IpAddr, key: &Key) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let bits = u128::from(u32::from(v4)) << 96;
            let mapped = flip(bits, 32, key, 4) >> 96;
            Ipv4Addr::from(u32::try_from(mapped).unwrap_or(0)).into()
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => match map(v4.into(), key) {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
                other @ IpAddr::V6(_) => other,
            },
            None => Ipv6Addr::from(flip(u128::from(v6), 128, key, 6)).into(),
        },
    }
}

/// Flips each of the first `count` bits or not, as the bits before it and the key say.
fn flip(bits: u128, count: u32, key: &Key, family: u64) -> u128 {
    let mut out = bits;
    let mut state = key.hash(family, 0);
    for at in 0..count {
        let bit = 1_u128 << (127 - at);
        if state & 1 == 1 {
            out ^= bit;
        }
        state = key.hash(state, u64::from(bits & bit != 0));
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mapped(address: u32) -> u32 {
        match map(Ipv4Addr::from(address).into(), &Key::new(*b"0123456789abcdef")) {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(_) => panic!("another family"),
        }
    }

    #[test]
    fn a_mapped_address_stays_one() {
        let key = Key::new([7; 16]);
        let v4: IpAddr = "10.0.0.7".parse().unwrap();
        let both: IpAddr = "::ffff:10.0.0.7".parse().unwrap();
        assert_eq!(map(v4, &key).to_canonical(), map(both, &key).to_canonical());
        let v6: IpAddr = "2001:db8::7".parse().unwrap();
        assert!(map(v6, &key).is_ipv6() && map(v6, &key) != v6);
    }

    proptest! {
        #[test]
        fn what_two_addresses_share_they_go_on_sharing(one: u32, other: u32) {
            prop_assert_eq!((one ^ other).leading_zeros(), (mapped(one) ^ mapped(other)).leading_zeros());
        }
    }
}
