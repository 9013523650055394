//! A site: one nginx and its upstreams, set up for a number of faults and for healthy traffic beside them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::client::Connection;
use crate::config::Config;
use crate::expect::Witness;
use crate::fault::Fault;
use crate::lab::{Addresses, Lab};
use crate::load::{Load, Traffic};
use crate::nginx::Nginx;
use crate::upstream::{Kind, Plan as UpstreamPlan, Upstream};

/// The name of the upstream that serves the healthy traffic and the faults which need no server of their own.
pub const APP: &str = "app";

/// Its port.
const APP_PORT: u16 = 9001;

/// What is to be set up; every fault adds its part.
#[derive(Debug)]
pub struct Plan {
    /// Who has which address.
    pub addresses: Addresses,
    /// The lab's directory, for unix sockets and other files that belong to a fault.
    pub directory: PathBuf,
    /// nginx's configuration.
    pub config: Config,
    /// The upstream servers.
    pub upstreams: Vec<UpstreamPlan>,
    /// Sysctls of the proxy's namespace, `ipv4/tcp_syn_retries` = `1`.
    pub proxy_sysctls: Vec<(&'static str, &'static str)>,
    /// Rules of the router's chain `forward`, one a line; only in a lab with a router.
    pub forward: String,
}

impl Plan {
    /// An address of the app.
    #[must_use]
    pub fn app(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.addresses.app, port))
    }

    /// An address of the app over IPv6.
    #[must_use]
    pub fn app6(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.addresses.app6, port))
    }

    /// Adds one of the lab's own servers; its commands are taken one port higher, on the loopback.
    pub fn own_server(&mut self, name: &'static str, port: u16, idle: Option<Duration>, open_files: Option<u64>) {
        let control = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port + 1)));
        let listen = vec![self.app(port)];
        self.upstreams.push(UpstreamPlan { name, kind: Kind::Own { control, idle }, listen, open_files });
    }

    /// Adds a server, once however many faults want it.
    pub fn server(&mut self, name: &'static str, kind: Kind, port: u16) {
        if self.upstreams.iter().all(|upstream| upstream.name != name) {
            let listen = vec![self.app(port)];
            self.upstreams.push(UpstreamPlan { name, kind, listen, open_files: None });
        }
    }

    /// Adds the lab's own server with further arguments (`crate::server`), known by its name.
    pub fn scripted(&mut self, name: &'static str, listen: Vec<SocketAddr>, arguments: Vec<String>) {
        self.upstreams.push(UpstreamPlan { name, kind: Kind::Scripted { arguments }, listen, open_files: None });
    }

    /// Adds a location that speaks HTTP/1.1 over kept connections to an `upstream` block of its own with one server.
    pub fn keepalive_location(&mut self, name: &str, prefix: &str, server: SocketAddr, path: &str) {
        let group = name.replace('-', "_");
        self.config.upstream(&group, &[&format!("server {server};"), "keepalive 16;"]);
        let pass = format!("proxy_pass http://{group}{path};");
        self.config.location(prefix, &[&pass, "proxy_http_version 1.1;", "proxy_set_header Connection \"\";"]);
    }
}

/// A running site.
#[derive(Debug)]
pub struct Site<'lab> {
    lab: &'lab Lab,
    // nginx goes before its upstreams: dropped in this order.
    nginx: Nginx,
    upstreams: Vec<Upstream>,
}

impl<'lab> Site<'lab> {
    /// Sets up what the faults need, starts everything and waits until it works. `adjust` may change the plan at the end.
    pub fn start_with(lab: &'lab Lab, name: &str, faults: &[Fault], adjust: impl FnOnce(&mut Plan)) -> Result<Self> {
        let mut plan = Plan {
            addresses: *lab.addresses(),
            directory: lab.directory().to_owned(),
            config: Config::default(),
            upstreams: Vec::new(),
            proxy_sysctls: Vec::new(),
            forward: String::new(),
        };
        let app = plan.app(APP_PORT);
        plan.own_server(APP, APP_PORT, None, None);
        plan.keepalive_location("healthy", "/ok", app, "");
        plan.config.location("/static", &["return 200 \"ok\\n\";"]);
        for fault in faults {
            if faults.len() > 1 && fault.alone {
                bail!("the fault {} needs a site of its own", fault.name);
            }
            (fault.configure)(&mut plan);
        }
        adjust(&mut plan);
        for (key, value) in &plan.proxy_sysctls {
            lab.proxy().sysctl(key, value)?;
        }
        if let Some(router) = lab.router() {
            let forward = &plan.forward;
            router.nft(&format!(
                "table ip lab {{\n chain forward {{\n type filter hook forward priority 0; policy accept;\n{forward} }}\n}}\n"
            ))?;
        } else if !plan.forward.is_empty() {
            bail!("this lab has no router for the rules\n{}", plan.forward);
        }
        let mut upstreams = Vec::new();
        for upstream in plan.upstreams {
            upstreams.push(Upstream::start(lab, upstream)?);
        }
        let nginx = Nginx::start(lab, name, &plan.config)?;
        Ok(Self { lab, nginx, upstreams })
    }

    /// The same without changes.
    pub fn start(lab: &'lab Lab, faults: &[Fault]) -> Result<Self> {
        Self::start_with(lab, "site", faults, |_plan| {})
    }

    /// The lab it stands in.
    #[must_use]
    pub fn lab(&self) -> &'lab Lab {
        self.lab
    }

    /// Its nginx.
    #[must_use]
    pub fn nginx(&self) -> &Nginx {
        &self.nginx
    }

    /// An upstream by its name.
    pub fn upstream(&self, name: &str) -> Result<&Upstream> {
        self.upstreams.iter().find(|upstream| upstream.name() == name).with_context(|| format!("no upstream {name}"))
    }

    /// The address of the upstream that serves most faults.
    #[must_use]
    pub fn app(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.lab.addresses().app, port))
    }

    /// The address of the healthy upstream.
    #[must_use]
    pub fn app_address(&self) -> SocketAddr {
        self.app(APP_PORT)
    }

    /// nginx's address for the client.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.lab.proxy_address(false), self.nginx.port())
    }

    /// A client's connection to nginx.
    pub fn connect(&self) -> Result<Connection> {
        Connection::open(self.lab.client(), self.address())
    }

    /// A client's connection to nginx over IPv6.
    pub fn connect6(&self) -> Result<Connection> {
        let address: IpAddr = self.lab.proxy_address(true);
        Connection::open(self.lab.client(), SocketAddr::new(address, self.nginx.port()))
    }

    /// Healthy traffic: kept and replaced connections alike.
    pub fn healthy(&self, uri: &str, rate: u32, connections: u32) -> Result<Load> {
        let traffic = Traffic {
            target: self.address(),
            uri: uri.to_owned(),
            rate,
            connections,
            requests_each: (uri != "/static").then_some(50),
        };
        Load::start(self.lab.client(), &traffic)
    }

    /// Brings a fault about.
    pub fn provoke(&self, fault: &Fault) -> Result<Vec<Witness>> {
        (fault.provoke)(self).with_context(|| format!("provoke {}", fault.name))
    }

    /// The number of TCP connections in the proxy's namespace to an address that are established.
    pub fn established_to(&self, remote: SocketAddr) -> Result<usize> {
        let path = format!("/proc/{}/net/tcp", self.nginx.master());
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let SocketAddr::V4(remote) = remote else { bail!("only IPv4 is looked up") };
        // The kernel prints the address as a native word and the port as a number, both in hexadecimal.
        let wanted = format!("{:08X}:{:04X}", u32::from_ne_bytes(remote.ip().octets()), remote.port());
        let established = |line: &&str| {
            let mut fields = line.split_whitespace().skip(2);
            fields.next() == Some(&wanted) && fields.next() == Some("01")
        };
        Ok(text.lines().filter(established).count())
    }
}
