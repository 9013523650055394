//! What a name resolves to in nginx's place: its files, its name servers, its network.

use std::{
    net::{SocketAddr, ToSocketAddrs as _},
    thread,
};

use crate::{live::namespaces::Namespaces, model::host::HostFact};

/// The name's addresses now; `None` where that could not be asked. As slow as the name servers are.
pub(super) fn resolve(name: &str, port: u16, pid: u32) -> Option<HostFact> {
    let namespaces = Namespaces::of(pid).ok()?;
    let wanted = name.to_owned();
    // A thread of its own, because it cannot come back from another mount namespace.
    let asked = thread::Builder::new()
        .name("resolve".into())
        .spawn(move || {
            namespaces.enter_from_thread().ok()?;
            Some((wanted.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<SocketAddr>>))
        })
        .ok()?;
    let addresses = match asked.join().ok()?? {
        Ok(mut addresses) => {
            addresses.sort_unstable();
            addresses.dedup();
            addresses
        }
        // A failure of the name server is no statement about the name; only "no such name" is, and std does not tell the two apart.
        Err(_) => return None,
    };
    Some(HostFact::Name { name: name.to_owned(), port, addresses })
}
