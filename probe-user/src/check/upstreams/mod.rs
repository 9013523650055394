//! Names, connections, handshakes and answers of upstreams.

mod answer;
mod connect;
mod name;
mod tls;

use super::{
    finding::{Area, Finding, Weight},
    plan::{Endpoint, Server},
    seen::{Seen, Try},
};

/// Judges every name and every address that was tried.
pub(super) fn judge(seen: &Seen) -> Vec<Finding> {
    let mut findings: Vec<Finding> = seen.names.iter().filter_map(|name| name::judge(seen, name)).collect();
    findings.extend(seen.names.iter().filter_map(|name| name::stale(seen, name)));
    for one in &seen.tries {
        let Some(endpoint) = seen.endpoints.get(one.endpoint) else { continue };
        let subject = subject(endpoint, one);
        let case = Case { seen, endpoint, one, subject };
        let found = match (&one.connect, &one.tls, &one.answer) {
            (Err(failure), _, _) => vec![connect::judge(&case, failure)],
            (Ok(()), Some(tls), _) if tls.result.is_err() => tls::failed(&case, tls).into_iter().collect(),
            (Ok(()), tls, answer) => {
                let certificate = tls.as_ref().and_then(|tls| tls::certificate(&case, tls));
                let answer = answer.as_ref().into_iter().flat_map(|answer| answer::judge(&case, answer));
                certificate.into_iter().chain(answer).collect()
            }
        };
        findings.extend(found.into_iter().map(|finding| finding.at(endpoint.places())));
    }
    findings
}

/// One try with what it belongs to.
struct Case<'a> {
    seen: &'a Seen,
    endpoint: &'a Endpoint,
    one: &'a Try,
    subject: String,
}

impl Case<'_> {
    fn finding(&self, weight: Weight, cause: Option<&'static str>, title: String) -> Finding {
        Finding::new(weight, Area::Upstream, cause, &self.subject, title)
    }

    /// A server that does not answer is a fault; one of a name's several addresses, or a backup, is a risk while others answer: nginx
    /// goes on to them.
    fn weight(&self) -> Weight {
        if self.has_substitute() || self.is_backup() { Weight::Risk } else { Weight::Fault }
    }

    fn has_substitute(&self) -> bool {
        matches!(self.endpoint.server, Server::Name(..))
            && self.seen.tries.iter().any(|other| {
                other.endpoint == self.one.endpoint && other.address != self.one.address && other.connect.is_ok()
            })
    }

    fn is_backup(&self) -> bool {
        !self.endpoint.uses.is_empty()
            && self.endpoint.uses.iter().all(|user| {
                let member = user.member.and_then(|(group, server)| {
                    self.seen.layout.groups.get(group).and_then(|group| group.servers.get(server))
                });
                member.is_some_and(|server| server.parameters.iter().any(|word| word == "backup"))
            })
    }

    /// What stands beside a finding that others soften.
    fn softened(&self, finding: Finding) -> Finding {
        if self.has_substitute() {
            let name = self.endpoint.name();
            return finding.seen(format!("other addresses of {name} answer, so nginx's next try hides it"));
        }
        if self.is_backup() { finding.seen("it is a backup: it is asked when all others fail") } else { finding }
    }
}

fn subject(endpoint: &Endpoint, one: &Try) -> String {
    match &endpoint.server {
        Server::Address(_) => one.address.to_string(),
        Server::Name(name, _) => format!("{} ({name})", one.address),
    }
}

/// `12.3 ms`
fn milliseconds(us: u64) -> String {
    format!("{}.{} ms", us / 1_000, us % 1_000 / 100)
}

/// The first bytes of something, as text where they are text.
fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 48;
    let mut out = String::new();
    for byte in bytes.iter().take(MOST) {
        out.extend(byte.escape_ascii().map(char::from));
    }
    if bytes.len() > MOST {
        out.push('…');
    }
    format!("\"{out}\"")
}
