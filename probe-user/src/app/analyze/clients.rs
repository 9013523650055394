//! Clients' addresses, replaced in what was found before anything is made of it: so the same client has the same address wherever it is
//! told, and what belongs together still does.

use std::{
    fs::File,
    io::Read as _,
    net::{IpAddr, SocketAddr},
};

use anyhow::Context as _;

use crate::{
    model::{event::Body, packet::PacketBody, wire::Wire},
    offline::{
        analysis::{Analysis, Finding},
        segment::End,
    },
    redact::{Key, Level, Redactor},
};

/// Who is told as somebody else. A capture does not say who is a client: it is everybody who is not known to serve.
#[derive(Debug)]
pub(super) struct Clients {
    /// `None`: everybody is told as he is.
    redactor: Option<Redactor>,
}

impl Clients {
    /// With a key that nobody knows and nobody keeps.
    pub(super) fn new(level: Level) -> Result<Self, anyhow::Error> {
        if level != Level::All {
            return Ok(Self { redactor: None });
        }
        let mut random = [0; 16];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut random))
            .context("cannot read random bytes for the redaction")?;
        Ok(Self { redactor: Some(Redactor::new(level, Key::new(random))) })
    }

    /// Replaces them in a finding.
    pub(super) fn replace(&self, finding: &mut Finding, analysis: &Analysis) {
        if self.redactor.is_none() {
            return;
        }
        let end = |end: &mut End| {
            let mut socket = end.socket();
            self.socket(&mut socket, analysis);
            *end = End::of(socket);
        };
        match finding {
            Finding::Connection(ended) => {
                end(&mut ended.originator);
                end(&mut ended.responder);
            }
            Finding::Exchange(exchange) => {
                end(&mut exchange.0);
                end(&mut exchange.1);
            }
            Finding::Event(_, body) => self.replace_in(body, analysis),
        }
    }

    /// Replaces them in an event.
    pub(super) fn replace_in(&self, body: &mut Body, analysis: &Analysis) {
        if self.redactor.is_none() {
            return;
        }
        let socket = |address: &mut SocketAddr| self.socket(address, analysis);
        match body {
            Body::Packet(event) => match &mut event.body {
                PacketBody::Tcp(packet) => {
                    socket(&mut packet.header.source);
                    socket(&mut packet.header.destination);
                }
                PacketBody::Icmp(packet) => {
                    packet.from = self.shown(packet.from, analysis);
                    socket(&mut packet.about.0);
                    socket(&mut packet.about.1);
                }
            },
            Body::Wire(Wire::Attempt(attempt)) => {
                socket(&mut attempt.local);
                socket(&mut attempt.upstream);
            }
            Body::Wire(Wire::Answer(answer)) => {
                socket(&mut answer.client);
                socket(&mut answer.server);
            }
            Body::ErrorLine(line) => self.text(&mut line.client, analysis),
            Body::AccessLine(line) => self.text(&mut line.client, analysis),
            _ => {}
        }
    }

    /// A log has an address as text, some with a port; what is neither (`unix:`) tells nobody's.
    fn text(&self, text: &mut Option<String>, analysis: &Analysis) {
        let Some(known) = text.as_deref() else { return };
        if let Ok(ip) = known.parse() {
            *text = Some(self.shown(ip, analysis).to_string());
        } else if let Ok(mut address) = known.parse() {
            self.socket(&mut address, analysis);
            *text = Some(address.to_string());
        }
    }

    fn socket(&self, address: &mut SocketAddr, analysis: &Analysis) {
        address.set_ip(self.shown(address.ip(), analysis));
    }

    fn shown(&self, ip: IpAddr, analysis: &Analysis) -> IpAddr {
        match &self.redactor {
            Some(redactor) if !analysis.serves(End::of(SocketAddr::new(ip, 0))) => redactor.client(ip),
            _ => ip,
        }
    }
}
