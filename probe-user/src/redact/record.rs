//! Kernel records: only those made inside nginx hold anything of a request.

use std::{mem::offset_of, net::IpAddr};

use probe_abi::{
    Endpoint, Header, Kind,
    endpoint::{FAMILY_INET, FAMILY_INET6},
    nginx::{Log, REQUEST_LINE, Status},
};
use zerocopy::FromBytes;

use super::{Key, address, target};

fn kind(record: &[u8]) -> Option<Kind> {
    Kind::from_number(Header::read_from_prefix(record).ok()?.0.kind)
}

/// Whether it can hold a request line or a client's address.
pub(super) fn is_of_request(record: &[u8]) -> bool {
    matches!(
        kind(record),
        Some(Kind::NginxLog | Kind::NginxSpecialResponse | Kind::NginxSendHeader | Kind::NginxRedirect)
    )
}

/// Replaces the query's values, and the client if asked to.
pub(super) fn blank(record: &mut [u8], key: &Key, clients: bool) {
    let (begin, ends) = match kind(record) {
        Some(Kind::NginxLog) => {
            (offset_of!(Log, request_line), [offset_of!(Log, client), offset_of!(Log, client_socket)])
        }
        Some(Kind::NginxSpecialResponse | Kind::NginxSendHeader | Kind::NginxRedirect) => {
            (offset_of!(Status, request_line), [offset_of!(Status, client), offset_of!(Status, client_socket)])
        }
        _ => return,
    };
    if let Some(line) = record.get_mut(begin..begin + REQUEST_LINE) {
        let end = line.iter().position(|byte| *byte == 0).unwrap_or(line.len());
        target::request_line(&mut line[..end], key);
    }
    for at in ends.into_iter().filter(|_| clients) {
        if let Some(bytes) = record.get_mut(at..at + size_of::<Endpoint>()) {
            map(bytes, key);
        }
    }
}

/// Replaces the address of an [`Endpoint`].
fn map(bytes: &mut [u8], key: &Key) {
    let Ok(endpoint) = Endpoint::read_from_bytes(bytes) else { return };
    let [a, b, c, d, ..] = endpoint.address;
    let was: IpAddr = match endpoint.family {
        FAMILY_INET => [a, b, c, d].into(),
        FAMILY_INET6 => endpoint.address.into(),
        _ => return,
    };
    let begin = offset_of!(Endpoint, address);
    let put = |bytes: &mut [u8], octets: &[u8]| {
        if let Some(place) = bytes.get_mut(begin..begin + octets.len()) {
            place.copy_from_slice(octets);
        }
    };
    match address::map(was, key) {
        IpAddr::V4(v4) => put(bytes, &v4.octets()),
        IpAddr::V6(v6) => put(bytes, &v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use probe_abi::nginx::HOST;
    use zerocopy::{FromZeros as _, IntoBytes as _};

    use super::*;

    fn status() -> Status {
        let mut status = Status::new_zeroed();
        status.header.kind = Kind::NginxSendHeader as u16;
        let line = b"GET /a?token=secret HTTP/1.1";
        status.request_line[..line.len()].copy_from_slice(line);
        status.host = [b'h'; HOST];
        status.client = Endpoint { family: FAMILY_INET, port: [1, 2], ..Endpoint::UNKNOWN };
        status.client.address[..4].copy_from_slice(&[10, 0, 0, 7]);
        status
    }

    #[test]
    fn the_query_goes_and_everything_else_stays() {
        let mut bytes = status().as_bytes().to_vec();
        assert!(is_of_request(&bytes));
        let key = Key::new([3; 16]);
        blank(&mut bytes, &key, false);
        let after = Status::read_from_bytes(&bytes).unwrap();
        assert!(
            after.request_line.starts_with(b"GET /a?token=") && !after.request_line.windows(6).any(|w| w == b"secret")
        );
        assert_eq!((after.host, after.client), (status().host, status().client));
        blank(&mut bytes, &key, true);
        let after = Status::read_from_bytes(&bytes).unwrap();
        assert!(after.client.address != status().client.address && after.client.port == [1, 2]);
        assert_eq!(after.client_socket, Endpoint::UNKNOWN);
    }

    #[test]
    fn an_error_of_nginxs_names_a_request_too() {
        let mut log = Log::new_zeroed();
        log.header.kind = Kind::NginxLog as u16;
        let line = b"GET /a?token=secret HTTP/1.1";
        log.request_line[..line.len()].copy_from_slice(line);
        let mut bytes = log.as_bytes().to_vec();
        blank(&mut bytes, &Key::new([3; 16]), false);
        let after = Log::read_from_bytes(&bytes).unwrap();
        assert!(after.request_line.starts_with(b"GET /a?token="));
        assert!(!after.request_line.windows(6).any(|bytes| bytes == b"secret"));
    }

    #[test]
    fn short_and_foreign_records_are_left_alone() {
        let key = Key::new([3; 16]);
        for cut in 0..size_of::<Status>() {
            blank(&mut status().as_bytes()[..cut].to_vec(), &key, true);
        }
        let mut other = vec![7; 64];
        blank(&mut other, &key, true);
        assert_eq!(other, [7; 64]);
    }
}
