//! The lab: client, proxy and app, each in a namespace of its own, joined by veth pairs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::namespace::{Namespace, PREFIX, run, sweep};

/// Counts the labs of this process, so that several can stand at once.
static LABS: AtomicU32 = AtomicU32::new(0);

/// Who has which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// nginx, as the client reaches it.
    pub proxy: Ipv4Addr,
    /// nginx over IPv6.
    pub proxy6: Ipv6Addr,
    /// The upstreams.
    pub app: Ipv4Addr,
    /// The upstreams over IPv6.
    pub app6: Ipv6Addr,
    /// Addresses that take every packet and answer none: a static neighbour entry names a station that does not exist.
    /// Not dropped by a packet filter, which on this host would be another cause (`firewall-dropped`).
    /// `None` where everything is on the loopback.
    pub silent: Option<[Ipv4Addr; 2]>,
}

/// Namespaces, addresses and a directory; all of it is gone when dropped, also after a panic.
#[derive(Debug)]
pub struct Lab {
    // Fields drop in this order: the directory goes before the namespaces, what ran in them has gone before both.
    directory: TempDir,
    rooms: Rooms,
    addresses: Addresses,
}

/// How the roles are spread over namespaces.
#[derive(Debug)]
enum Rooms {
    Apart { app: Namespace, proxy: Namespace, client: Namespace, router: Option<Namespace> },
    Together(Namespace),
}

impl Lab {
    /// Client, proxy and app in three namespaces, IPv4 and IPv6 between neighbours.
    pub fn new() -> Result<Self> {
        let (directory, name) = begin()?;
        let client = Namespace::create(&format!("{name}-client"))?;
        let proxy = Namespace::create(&format!("{name}-proxy"))?;
        let app = Namespace::create(&format!("{name}-app"))?;
        for (near, other, far) in [("client0", &client, "proxy-c"), ("app0", &app, "proxy-a")] {
            let mut link = std::process::Command::new("ip");
            link.args(["link", "add", near, "netns", other.name(), "type", "veth"]);
            run(link.args(["peer", "name", far, "netns", proxy.name()]))?;
        }
        let [silent, silenter] = [Ipv4Addr::new(10, 77, 2, 98), Ipv4Addr::new(10, 77, 2, 99)];
        client.ip_batch(
            "addr add 10.77.1.2/24 dev client0\naddr add fd77:1::2/64 dev client0 nodad\nlink set client0 up\n",
        )?;
        app.ip_batch("addr add 10.77.2.2/24 dev app0\naddr add fd77:2::2/64 dev app0 nodad\nlink set app0 up\n")?;
        proxy.ip_batch(&format!(
            "addr add 10.77.1.1/24 dev proxy-c\naddr add fd77:1::1/64 dev proxy-c nodad\nlink set proxy-c up\n\
             addr add 10.77.2.1/24 dev proxy-a\naddr add fd77:2::1/64 dev proxy-a nodad\nlink set proxy-a up\n\
             neigh add {silent} lladdr 02:00:00:00:00:98 nud permanent dev proxy-a\n\
             neigh add {silenter} lladdr 02:00:00:00:00:99 nud permanent dev proxy-a\n"
        ))?;
        let addresses = Addresses {
            proxy: Ipv4Addr::new(10, 77, 1, 1),
            proxy6: Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 1),
            app: Ipv4Addr::new(10, 77, 2, 2),
            app6: Ipv6Addr::new(0xfd77, 2, 0, 0, 0, 0, 0, 2),
            silent: Some([silent, silenter]),
        };
        Ok(Self { directory, rooms: Rooms::Apart { app, proxy, client, router: None }, addresses })
    }

    /// The same with a router between proxy and app, IPv4 only: a third kernel namespace that can drop, refuse and forge.
    pub fn with_router() -> Result<Self> {
        let (directory, name) = begin()?;
        let client = Namespace::create(&format!("{name}-client"))?;
        let proxy = Namespace::create(&format!("{name}-proxy"))?;
        let router = Namespace::create(&format!("{name}-router"))?;
        let app = Namespace::create(&format!("{name}-app"))?;
        for (near, other, far, home) in [
            ("client0", &client, "proxy-c", &proxy),
            ("router-p", &router, "proxy-r", &proxy),
            ("app0", &app, "router-a", &router),
        ] {
            let mut link = std::process::Command::new("ip");
            link.args(["link", "add", near, "netns", other.name(), "type", "veth"]);
            run(link.args(["peer", "name", far, "netns", home.name()]))?;
        }
        client.ip_batch("addr add 10.77.1.2/24 dev client0\nlink set client0 up\n")?;
        app.ip_batch("addr add 10.77.2.2/24 dev app0\nlink set app0 up\nroute add default via 10.77.2.1\n")?;
        router.ip_batch(
            "addr add 10.77.3.2/24 dev router-p\nlink set router-p up\naddr add 10.77.2.1/24 dev router-a\nlink set router-a up\n",
        )?;
        router.sysctl("ipv4/ip_forward", "1")?;
        proxy.ip_batch(
            "addr add 10.77.1.1/24 dev proxy-c\nlink set proxy-c up\naddr add 10.77.3.1/24 dev proxy-r\nlink set proxy-r up\n\
             route add 10.77.2.0/24 via 10.77.3.2\n",
        )?;
        let addresses = Addresses {
            proxy: Ipv4Addr::new(10, 77, 1, 1),
            proxy6: Ipv6Addr::LOCALHOST,
            app: Ipv4Addr::new(10, 77, 2, 2),
            app6: Ipv6Addr::LOCALHOST,
            silent: None,
        };
        Ok(Self { directory, rooms: Rooms::Apart { app, proxy, client, router: Some(router) }, addresses })
    }

    /// The router between proxy and app, where there is one.
    #[must_use]
    pub fn router(&self) -> Option<&Namespace> {
        match &self.rooms {
            Rooms::Apart { router, .. } => router.as_ref(),
            Rooms::Together(_) => None,
        }
    }

    /// Everything on the loopback of one fresh namespace: as on the host where nginx and the upstreams share 127.0.0.1.
    pub fn on_host_loopback() -> Result<Self> {
        let (directory, name) = begin()?;
        let all = Namespace::create(&format!("{name}-all"))?;
        let addresses = Addresses {
            proxy: Ipv4Addr::LOCALHOST,
            proxy6: Ipv6Addr::LOCALHOST,
            app: Ipv4Addr::LOCALHOST,
            app6: Ipv6Addr::LOCALHOST,
            silent: None,
        };
        Ok(Self { directory, rooms: Rooms::Together(all), addresses })
    }

    /// Where the client's sockets are made.
    #[must_use]
    pub fn client(&self) -> &Namespace {
        match &self.rooms {
            Rooms::Apart { client, .. } => client,
            Rooms::Together(all) => all,
        }
    }

    /// Where nginx runs.
    #[must_use]
    pub fn proxy(&self) -> &Namespace {
        match &self.rooms {
            Rooms::Apart { proxy, .. } => proxy,
            Rooms::Together(all) => all,
        }
    }

    /// Where the upstreams run.
    #[must_use]
    pub fn app(&self) -> &Namespace {
        match &self.rooms {
            Rooms::Apart { app, .. } => app,
            Rooms::Together(all) => all,
        }
    }

    /// Who has which address.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// nginx's address as the client sees it, over IPv4 or IPv6.
    #[must_use]
    pub fn proxy_address(&self, ipv6: bool) -> IpAddr {
        if ipv6 { self.addresses.proxy6.into() } else { self.addresses.proxy.into() }
    }

    /// A directory for configurations and logs, readable by everybody, gone with the lab.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A new directory inside the lab's own.
    pub fn subdirectory(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory().join(name);
        std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }
}

/// Sweeps, then gives the lab's directory and the stem of its names.
fn begin() -> Result<(TempDir, String)> {
    sweep();
    let name = format!("{PREFIX}{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
    let directory = tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .context("make the lab's directory")?;
    Ok((directory, name))
}
