//! Where the kernel's address translation leads a connection: its table of connections (`nf_conntrack`) knows both of its ends, as they were
//! addressed and as they answer (<https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/netfilter/nfnetlink_conntrack.h>).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::Path,
};

use nix::sys::socket::SockProtocol;

use super::{
    Lookup,
    diag::connections,
    netlink::{NLM_F_REQUEST, attribute, attributes, dump, ip, message, octets},
    within,
};
use crate::{live::nginx::plain, model::host::HostFact};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`, and `…_NEW`, which is the answer.
const GET: u16 = 0x101;
const ANSWER: u16 = 0x100;
/// With an acknowledgement: the answer says that more will follow, and none does.
const NLM_F_REQUEST_ACK: u16 = NLM_F_REQUEST | 0x4;
const NESTED: u16 = 0x8000;
/// `struct nfgenmsg`
const HEADER: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const TCP: u8 = 6;

/// There where the kernel tracks connections. To ask where it does not would make it load the module that answers.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// Connections of an upstream that are asked about: behind one address there may be several servers.
const SAMPLES: usize = 4;

impl Lookup {
    /// Where a connection of nginx is led, by its own network namespace or by the host's; nothing where its address is not translated.
    pub fn translation(&mut self, local: SocketAddr, upstream: SocketAddr, netns: Option<u32>) -> Option<HostFact> {
        let asked = plain(upstream);
        let ask = || reply(plain(local), asked);
        let led = |answer: io::Result<Option<(SocketAddr, SocketAddr)>>| match answer {
            Ok(found) => found.filter(|(from, _)| *from != asked),
            Err(error) => {
                tracing::debug!("the table of connections was not read: {error}");
                None
            }
        };
        // What leaves a container is translated outside of it.
        let there = self.resident(netns).and_then(|pid| within(pid, ask));
        let (to, back) = there.and_then(led).or_else(|| led(ask()))?;
        Some(HostFact::Translated { upstream, local, netns, to, seen_as: (back != plain(local)).then_some(back) })
    }

    /// Where connections to these upstreams that nginx has, or had a moment ago, are led.
    pub fn translations(&mut self, upstreams: &BTreeSet<SocketAddr>, netns: Option<u32>) -> Vec<HostFact> {
        let Some(pid) = self.resident(netns) else { return Vec::new() };
        if !is_tracked() && !within(pid, is_tracked).unwrap_or(false) {
            return Vec::new();
        }
        let plainly: BTreeMap<SocketAddr, SocketAddr> = upstreams.iter().map(|one| (plain(*one), *one)).collect();
        let mut samples: BTreeMap<SocketAddr, Vec<SocketAddr>> = BTreeMap::new();
        let looked = within(pid, || {
            connections(|local, remote| {
                if let Some(of) = plainly.get(&remote).map(|upstream| samples.entry(*upstream).or_default())
                    && of.len() < SAMPLES
                {
                    of.push(local);
                }
            })
        });
        if !matches!(looked, Some(Ok(()))) {
            tracing::debug!("the connections that are open were not all looked at: {looked:?}");
        }
        let mut found = Vec::new();
        for (upstream, locals) in samples {
            found.extend(locals.into_iter().filter_map(|local| self.translation(local, upstream, netns)));
        }
        found
    }
}

fn is_tracked() -> bool {
    Path::new(COUNT).exists()
}

/// Who answers a connection, and whom: the two ends of the reply. `None`: this network namespace does not track it.
fn reply(local: SocketAddr, upstream: SocketAddr) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
    if !is_tracked() {
        return Ok(None);
    }
    let mut found = None;
    let asked = dump(SockProtocol::NetlinkNetFilter, &question(local, upstream), |kind, answer| {
        if kind == ANSWER {
            found = read(answer);
        }
    });
    match asked {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(found),
    }
}

fn question(local: SocketAddr, upstream: SocketAddr) -> Vec<u8> {
    let (v4, base) = (local.is_ipv4(), if local.is_ipv4() { CTA_IP_V4_SRC } else { CTA_IP_V6_SRC });
    let mut addresses = attribute(base, &octets(local.ip()));
    addresses.extend(attribute(base + 1, &octets(upstream.ip())));
    let mut ports = attribute(CTA_PROTO_NUM, &[TCP]);
    ports.extend(attribute(CTA_PROTO_SRC_PORT, &local.port().to_be_bytes()));
    ports.extend(attribute(CTA_PROTO_DST_PORT, &upstream.port().to_be_bytes()));
    let mut tuple = attribute(CTA_TUPLE_IP | NESTED, &addresses);
    tuple.extend(attribute(CTA_TUPLE_PROTO | NESTED, &ports));
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    let mut body = vec![u8::try_from(family).unwrap_or(0), 0, 0, 0];
    body.extend(attribute(CTA_TUPLE_ORIG | NESTED, &tuple));
    message(GET, NLM_F_REQUEST_ACK, &body)
}

fn read(answer: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let reply = find(answer.get(HEADER..)?, CTA_TUPLE_REPLY)?;
    let (addresses, ports) = (find(reply, CTA_TUPLE_IP)?, find(reply, CTA_TUPLE_PROTO)?);
    let address = |side: u16| {
        find(addresses, CTA_IP_V4_SRC + side).or_else(|| find(addresses, CTA_IP_V6_SRC + side)).and_then(ip)
    };
    let port = |kind: u16| Some(u16::from_be_bytes(find(ports, kind)?.try_into().ok()?));
    let source = SocketAddr::new(address(0)?, port(CTA_PROTO_SRC_PORT)?);
    Some((source, SocketAddr::new(address(1)?, port(CTA_PROTO_DST_PORT)?)))
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// What is asked is a tuple like the one that answers.
    #[test]
    fn both_ends_of_the_reply_are_read() {
        for (from, to) in [("10.88.0.2:8003", "10.88.0.1:40000"), ("[fd00::2]:8003", "[fd00::1]:40000")] {
            let asked = question(address(from), address(to));
            // Behind the netlink header, and as the other direction.
            let mut answer = asked[16..].to_vec();
            answer[HEADER + 2..HEADER + 4].copy_from_slice(&(CTA_TUPLE_REPLY | NESTED).to_ne_bytes());
            assert_eq!(read(&answer), Some((address(from), address(to))));
            assert_eq!(read(&asked[16..]), None, "the direction that was asked for is no answer");
        }
    }

    #[test]
    fn a_connection_that_is_not_there_is_none() {
        assert_eq!(reply(address("192.0.2.1:1"), address("192.0.2.2:2")).unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }
    }
}
