//! Where the kernel's address translation leads a connection: its table of connections (`nf_conntrack`) knows both of its ends, as they were
//! addressed and as they answer (<https://elixir.bootlin.com/linux/v6.12/source/include/uapi/linux/netfilter/nfnetlink_conntrack.h>).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use nix::sys::socket::SockProtocol;

use super::{
    Lookup,
    diag::connections,
    is_local,
    netlink::{NLM_F_REQUEST, NLM_F_REQUEST_DUMP, attribute, attributes, dump, ip, message, octets},
    within,
};
use crate::{
    live::{namespaces, nginx::plain},
    model::host::HostFact,
};

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
const CTA_STATUS: u16 = 3;
const CTA_STATUS_MASK: u16 = 26;
/// The destination is translated.
const IPS_DST_NAT: u32 = 1 << 5;
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

/// A table with more connections is not read: that would keep everything else waiting. Measured, each takes 3 µs, and the 262,144 buckets
/// that the whole host has, 11 ms.
const READ_AT_MOST: u32 = 8_192;
/// So many kinds of connections are taken from it.
const FOUND_AT_MOST: usize = 4_096;
/// Connections of an upstream that are asked about where the table is not read: behind one address there may be several servers.
const SAMPLES: usize = 4;

impl Lookup {
    /// Where a connection of nginx is led, by its own network namespace or by the host's; nothing where its address is not translated.
    pub fn translation(&mut self, local: SocketAddr, upstream: SocketAddr, netns: Option<u32>) -> Option<HostFact> {
        let asked = plain(upstream);
        let ask = || reply(plain(local), asked);
        let translated = |answer: io::Result<Option<(SocketAddr, SocketAddr)>>| match answer {
            Ok(found) => found.filter(|(from, _)| *from != asked),
            Err(error) => {
                tracing::debug!("the table of connections was not read: {error}");
                None
            }
        };
        // What leaves a container is translated outside of it.
        let there = self.resident(netns).and_then(|pid| within(pid, ask));
        let (to, back) = there.and_then(translated).or_else(|| translated(ask()))?;
        Some(HostFact::Translated { upstream, local, netns, to, seen_as: (back != plain(local)).then_some(back) })
    }

    /// Where connections to these upstreams are led that nginx has, or had a while ago: the table remembers one that ended in order for two
    /// minutes, and nginx has nothing left of one that the server ended.
    pub fn translations(&mut self, upstreams: &BTreeSet<SocketAddr>, netns: Option<u32>) -> Vec<HostFact> {
        let Some(pid) = self.resident(netns) else { return Vec::new() };
        let plainly: BTreeMap<SocketAddr, SocketAddr> = upstreams.iter().map(|one| (plain(*one), *one)).collect();
        let mut tables = vec![within(pid, || led(&plainly)).unwrap_or(Table::Unread)];
        // What leaves a container is translated outside of it.
        if netns.is_some_and(|netns| namespaces::inode(std::process::id(), "net") != Some(netns)) {
            tables.push(led(&plainly));
        }
        // Outside of a container there are others beside it, who may be led elsewhere.
        let mut own: BTreeMap<IpAddr, bool> = BTreeMap::new();
        let mut found: BTreeMap<(SocketAddr, SocketAddr), HostFact> = BTreeMap::new();
        for Entry { local, upstream, to, back } in tables.iter().flat_map(Table::entries) {
            if *own.entry(local.ip()).or_insert_with(|| is_local(pid, local.ip()))
                && let Some(upstream) = plainly.get(&upstream).copied()
            {
                let seen_as = (back != local).then_some(back);
                let fact = HostFact::Translated { upstream, local, netns, to, seen_as };
                found.entry((upstream, to)).or_insert(fact);
            }
        }
        let mut found: Vec<HostFact> = found.into_values().collect();
        if tables.iter().any(|table| matches!(table, Table::Unread)) {
            found.extend(self.translations_of_samples(pid, &plainly, netns));
        }
        found
    }

    /// The same where a table is too large to be read: of a few connections that are open, or were a moment ago.
    fn translations_of_samples(
        &mut self,
        pid: u32,
        plainly: &BTreeMap<SocketAddr, SocketAddr>,
        netns: Option<u32>,
    ) -> Vec<HostFact> {
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

/// A connection whose destination was translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    local: SocketAddr,
    upstream: SocketAddr,
    /// Who answers, and whom.
    to: SocketAddr,
    back: SocketAddr,
}

/// What a network namespace's table has of the connections that are looked for.
#[derive(Debug)]
enum Table {
    /// The kernel keeps none there.
    Untracked,
    /// It is too large, or was not told.
    Unread,
    /// One connection of each upstream and each place that it leads to, and of each address it comes from.
    Read(BTreeMap<(SocketAddr, SocketAddr, IpAddr), Entry>),
}

impl Table {
    fn entries(&self) -> impl Iterator<Item = Entry> {
        let read = if let Self::Read(found) = self { Some(found) } else { None };
        read.into_iter().flat_map(|found| found.values().copied())
    }
}

/// The connections to these upstreams whose destination is translated in the network namespace this thread is in.
fn led(upstreams: &BTreeMap<SocketAddr, SocketAddr>) -> Table {
    let Ok(count) = fs::read_to_string(COUNT) else { return Table::Untracked };
    match count.trim().parse::<u32>() {
        // To find nothing takes as long as to look through all buckets.
        Ok(0) => return Table::Read(BTreeMap::new()),
        Ok(count) if count > READ_AT_MOST => return Table::Unread,
        _ => {}
    }
    let mut found = BTreeMap::new();
    let read = dump(SockProtocol::NetlinkNetFilter, &everything_translated(), |kind, answer| {
        if kind == ANSWER
            && let Some(entry) = entry(answer).filter(|entry| upstreams.contains_key(&entry.upstream))
            && found.len() < FOUND_AT_MOST
        {
            found.insert((entry.upstream, entry.to, entry.local.ip()), entry);
        }
    });
    match read {
        Ok(()) => Table::Read(found),
        Err(error) => {
            tracing::debug!("the table of connections was not read: {error}");
            Table::Unread
        }
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
            found = read(answer, (local, upstream));
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

/// All of the table whose destination is translated. A kernel before 5.17 does not know this filter, and tells the rest as well.
fn everything_translated() -> Vec<u8> {
    let mut body = vec![0; HEADER];
    body.extend(attribute(CTA_STATUS, &IPS_DST_NAT.to_be_bytes()));
    body.extend(attribute(CTA_STATUS_MASK, &IPS_DST_NAT.to_be_bytes()));
    message(GET, NLM_F_REQUEST_DUMP, &body)
}

fn entry(answer: &[u8]) -> Option<Entry> {
    let ((local, upstream), (to, back)) = (tuple(answer, CTA_TUPLE_ORIG)?, tuple(answer, CTA_TUPLE_REPLY)?);
    (to != upstream).then_some(Entry { local, upstream, to, back })
}

/// The other direction than the one that was asked for. Of a connection that was under way when it was first tracked, the first packet may
/// have been the server's: then what was asked for is its reply.
fn read(answer: &[u8], asked: (SocketAddr, SocketAddr)) -> Option<(SocketAddr, SocketAddr)> {
    let reply = tuple(answer, CTA_TUPLE_REPLY)?;
    if reply == asked { tuple(answer, CTA_TUPLE_ORIG) } else { Some(reply) }
}

/// Source and destination of a TCP connection, in one of its directions.
fn tuple(answer: &[u8], direction: u16) -> Option<(SocketAddr, SocketAddr)> {
    let tuple = find(answer.get(HEADER..)?, direction)?;
    let (addresses, ports) = (find(tuple, CTA_TUPLE_IP)?, find(tuple, CTA_TUPLE_PROTO)?);
    if find(ports, CTA_PROTO_NUM)? != [TCP] {
        return None;
    }
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
            let back = (address(to), address(from));
            assert_eq!(read(&answer, back), Some((address(from), address(to))));
            assert_eq!(read(&asked[16..], back), None, "the direction that was asked for is no answer");
        }
    }

    /// An entry as the table tells it: the direction that was asked for, and its answer.
    fn told(asked: (&str, &str), answered: (&str, &str)) -> Vec<u8> {
        let original = question(address(asked.0), address(asked.1));
        let mut reply = question(address(answered.0), address(answered.1))[16 + HEADER..].to_vec();
        reply[2..4].copy_from_slice(&(CTA_TUPLE_REPLY | NESTED).to_ne_bytes());
        [&original[16..], &reply].concat()
    }

    #[test]
    fn an_entry_whose_destination_is_another_is_translated() {
        let (mine, service, server) = ("10.0.0.1:40000", "10.96.0.10:80", "10.244.0.5:8080");
        let found = entry(&told((mine, service), (server, mine))).unwrap();
        let [local, upstream, to] = [mine, service, server].map(address);
        assert_eq!(found, Entry { local, upstream, to, back: local });
        assert_eq!(entry(&told((mine, server), (server, mine))), None);
        assert_eq!(entry(&question(local, upstream)[16..]), None, "nothing is known of the answer");
    }

    #[test]
    fn a_connection_whose_first_packet_was_the_servers_leads_where_it_was_addressed() {
        let (mine, server) = ("10.0.0.1:40000", "10.244.0.5:8080");
        let asked = (address(mine), address(server));
        assert_eq!(read(&told((server, mine), (mine, server)), asked), Some((address(server), address(mine))));
        assert_eq!(read(&told((mine, server), (server, mine)), asked), Some((address(server), address(mine))));
    }

    #[test]
    fn no_upstream_leads_anywhere_where_nobody_connects_to_it() {
        let upstreams = BTreeSet::from([address("192.0.2.1:1")]);
        assert_eq!(Lookup::default().translations(&upstreams, None), []);
    }

    #[test]
    fn a_connection_that_is_not_there_is_none() {
        assert_eq!(reply(address("192.0.2.1:1"), address("192.0.2.2:2")).unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let asked = (address("192.0.2.1:1"), address("192.0.2.2:2"));
            let _ = (read(&bytes, asked), entry(&bytes));
        }
    }
}
