//! Where nginx keeps what, by version, fork and configure flags.
//!
//! Offsets were measured on builds of every version named here, x86-64 and aarch64 alike (LP64). A field that is not
//! known for certain is left out: the kernel programs then leave out what depends on it.

use probe_abi::nginx::{ABSENT, Layout};

/// Nothing is known.
pub const UNKNOWN: Layout = Layout {
    request_connection: ABSENT,
    request_upstream: ABSENT,
    request_upstream_states: ABSENT,
    request_host: ABSENT,
    request_status: ABSENT,
    request_err_status: ABSENT,
    request_line: ABSENT,
    request_main: ABSENT,
    connection_data: ABSENT,
    connection_fd: ABSENT,
    connection_log: ABSENT,
    connection_sockaddr: ABSENT,
    connection_number: ABSENT,
    connection_requests: ABSENT,
    log_connection: ABSENT,
    log_data: ABSENT,
    log_action: ABSENT,
    context_request: ABSENT,
    context_current_request: ABSENT,
    upstream_peer: ABSENT,
    peer_connection: ABSENT,
    peer_sockaddr: ABSENT,
    peer_name: ABSENT,
    state_status: ABSENT,
    state_response_time: ABSENT,
    state_connect_time: ABSENT,
    state_header_time: ABSENT,
    state_bytes_received: ABSENT,
    state_bytes_sent: ABSENT,
    state_peer: ABSENT,
};

/// What holds for every version from 1.18 on, every flag and every fork measured but Tengine's packages.
const COMMON: Layout = Layout {
    request_connection: 8,
    request_upstream: 72,
    request_upstream_states: 80,
    // `headers_in` follows at 104 and begins with a list of 56 bytes.
    request_host: 160,
    connection_data: 0,
    connection_fd: 24,
    connection_log: 80,
    connection_sockaddr: 104,
    log_connection: 16,
    log_data: 40,
    log_action: 64,
    context_request: 8,
    context_current_request: 16,
    upstream_peer: 16,
    peer_connection: 0,
    peer_sockaddr: 8,
    peer_name: 24,
    state_status: 0,
    state_response_time: 8,
    state_connect_time: 16,
    state_header_time: 24,
    state_bytes_received: 48,
    state_bytes_sent: 56,
    state_peer: 64,
    ..UNKNOWN
};

/// Who made the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// nginx.org's, and `OpenResty`, whose patches leave these structures alone.
    Nginx,
    /// Angie.
    Angie,
    /// freenginx.
    Freenginx,
    /// Tengine.
    Tengine,
}

/// A version, as far as it matters.
pub type Version = (u32, u32, u32);

/// What `nginx -V` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// Who made it.
    pub family: Family,
    /// Its version; for `OpenResty` and Tengine the nginx inside, where they say so.
    pub version: Version,
    /// Where it keeps what.
    pub layout: Layout,
}

/// Why the layout cannot be told.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// The text names no version.
    #[error("no version in what nginx -V printed")]
    NoVersion,
    /// Older than anything measured.
    #[error("version {}.{}.{} is older than 1.18, whose memory layout is not known", .0.0, .0.1, .0.2)]
    TooOld(Version),
}

impl Build {
    /// From the text of `nginx -V` (which goes to standard error).
    pub fn parse(text: &str) -> Result<Self, LayoutError> {
        let names: [(&str, Family); 5] = [
            ("Tengine/", Family::Tengine),
            ("Angie/", Family::Angie),
            ("freenginx/", Family::Freenginx),
            ("openresty/", Family::Nginx),
            ("nginx/", Family::Nginx),
        ];
        let (family, version) = names
            .iter()
            .find_map(|&(name, family)| Some((family, version_after(text, name)?)))
            .ok_or(LayoutError::NoVersion)?;
        let flags = text.split_once("configure arguments:").map_or("", |(_, flags)| flags);
        let layout = match family {
            Family::Nginx if version < (1, 18, 0) => return Err(LayoutError::TooOld(version)),
            Family::Nginx => nginx(version, flags),
            Family::Angie => angie(version),
            Family::Freenginx => freenginx(version),
            Family::Tengine => tengine(version, flags),
        };
        Ok(Self { family, version, layout: without_cache(layout, flags) })
    }

    /// Fields that are not known, by name.
    #[must_use]
    pub fn unknown(&self) -> Vec<&'static str> {
        let layout = &self.layout;
        [
            ("request_status", layout.request_status),
            ("request_err_status", layout.request_err_status),
            ("request_line", layout.request_line),
            ("request_main", layout.request_main),
            ("request_host", layout.request_host),
            ("connection_requests", layout.connection_requests),
            ("log_data", layout.log_data),
            ("state_bytes_received", layout.state_bytes_received),
        ]
        .into_iter()
        .filter_map(|(name, offset)| (offset == ABSENT).then_some(name))
        .collect()
    }
}

fn nginx(version: Version, flags: &str) -> Layout {
    // Without this flag what a structure holds depends on dozens of others; only the common part is certain.
    if !flags.contains("--with-compat") {
        return COMMON;
    }
    let connection_number = if version < (1, 25, 0) { 200 } else { 208 };
    // `start_time` came before it in 1.19.10, the QUIC pointer in 1.25.0.
    let connection_requests = match version {
        version if version < (1, 19, 10) => 208,
        version if version < (1, 25, 0) => 216,
        _ => 224,
    };
    let layout = Layout { connection_number, connection_requests, ..COMMON };
    match version {
        version if version < (1, 23, 0) => {
            Layout { request_status: 648, request_err_status: 1256, request_line: 992, request_main: 1128, ..layout }
        }
        version if version < (1, 29, 3) => {
            Layout { request_status: 584, request_err_status: 1128, request_line: 864, request_main: 1000, ..layout }
        }
        // Between these two the structure grew; in which release was not measured.
        version if version < (1, 30, 0) => layout,
        version if version < (1, 32, 0) => {
            Layout { request_status: 600, request_err_status: 1152, request_line: 888, request_main: 1024, ..layout }
        }
        _ => layout,
    }
}

fn angie(version: Version) -> Layout {
    match version {
        (1, 10 | 11, _) => Layout {
            request_status: 592,
            request_err_status: 1136,
            request_line: 864,
            connection_number: 208,
            ..COMMON
        },
        // Its attempts begin with another member, and the log is ordered otherwise.
        (1, 13, _) => Layout {
            log_data: 32,
            request_status: 600,
            request_err_status: 1152,
            request_line: 880,
            connection_number: 208,
            state_status: 8,
            state_response_time: 16,
            state_connect_time: 24,
            state_header_time: 32,
            state_bytes_received: ABSENT,
            state_bytes_sent: ABSENT,
            state_peer: 80,
            ..COMMON
        },
        _ => Layout {
            log_data: if version >= (1, 12, 0) { 32 } else { ABSENT },
            request_host: ABSENT,
            request_upstream_states: ABSENT,
            ..COMMON
        },
    }
}

fn freenginx(version: Version) -> Layout {
    let layout = Layout { log_data: 32, log_action: 56, ..COMMON };
    if version == (1, 27, 2) {
        Layout { request_status: 592, request_err_status: 1136, request_line: 872, connection_number: 208, ..layout }
    } else {
        layout
    }
}

fn tengine(version: Version, flags: &str) -> Layout {
    let layout = if flags.contains("multi_upstream") {
        Layout { connection_fd: 32, connection_log: 96, connection_sockaddr: 120, ..COMMON }
    } else {
        COMMON
    };
    let layout = Layout {
        request_host: ABSENT,
        state_response_time: 8,
        state_bytes_received: ABSENT,
        state_bytes_sent: ABSENT,
        state_peer: 104,
        ..layout
    };
    if version == (3, 2, 0) {
        Layout { request_status: 600, request_err_status: 1232, request_line: 952, ..layout }
    } else {
        layout
    }
}

/// Without the cache the request lacks one pointer near its beginning, and everything behind moves up.
fn without_cache(layout: Layout, flags: &str) -> Layout {
    if !flags.contains("--without-http-cache") {
        return layout;
    }
    let up = |offset: u32| if offset == ABSENT { ABSENT } else { offset - 8 };
    Layout {
        request_upstream: up(layout.request_upstream),
        request_upstream_states: up(layout.request_upstream_states),
        request_host: up(layout.request_host),
        request_status: up(layout.request_status),
        request_err_status: up(layout.request_err_status),
        request_line: up(layout.request_line),
        request_main: up(layout.request_main),
        ..layout
    }
}

/// The version behind a name: `nginx/1.22.1 (Ubuntu)`, `openresty/1.21.4.1`.
fn version_after(text: &str, name: &str) -> Option<Version> {
    let (_, rest) = text.split_once(name)?;
    let mut numbers = rest
        .split(|character: char| !character.is_ascii_digit() && character != '.')
        .next()?
        .split('.')
        .map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?, numbers.next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN_12: &str = "nginx version: nginx/1.22.1\nbuilt with OpenSSL 3.0.15 3 Sep 2024\nTLS SNI support enabled\n\
                             configure arguments: --with-cc-opt='-g -O2' --with-compat --with-debug --with-threads";

    #[test]
    fn debian_12() {
        let build = Build::parse(DEBIAN_12).unwrap();
        assert_eq!((build.family, build.version), (Family::Nginx, (1, 22, 1)));
        assert_eq!((build.layout.request_status, build.layout.request_err_status), (648, 1256));
        assert_eq!((build.layout.request_line, build.layout.request_main), (992, 1128));
        assert_eq!((build.layout.connection_requests, build.layout.log_data), (216, 40));
        assert_eq!(build.unknown(), Vec::<&str>::new());
    }

    #[test]
    fn columns_of_the_table() {
        let at = |version: &str| {
            Build::parse(&format!("nginx version: nginx/{version}\nconfigure arguments: --with-compat")).unwrap().layout
        };
        let row = |layout: Layout| {
            (layout.request_status, layout.request_err_status, layout.request_line, layout.connection_requests)
        };
        assert_eq!(row(at("1.18.0")), (648, 1256, 992, 208));
        assert_eq!(row(at("1.20.2")), (648, 1256, 992, 216));
        assert_eq!(row(at("1.24.0")), (584, 1128, 864, 216));
        assert_eq!(row(at("1.26.3")), (584, 1128, 864, 224));
        assert_eq!(row(at("1.28.3")), (584, 1128, 864, 224));
        assert_eq!(row(at("1.29.5")), (ABSENT, ABSENT, ABSENT, 224));
        assert_eq!(row(at("1.30.4")), (600, 1152, 888, 224));
        assert_eq!(row(at("1.31.4")), (600, 1152, 888, 224));
    }

    #[test]
    fn without_compat_only_the_common_part_is_claimed() {
        let build = Build::parse("nginx version: nginx/1.26.3\nconfigure arguments: --prefix=/opt").unwrap();
        assert_eq!(build.layout, COMMON);
        assert!(build.unknown().contains(&"request_status"));
    }

    #[test]
    fn without_cache_everything_moves_up() {
        let text = "nginx version: nginx/1.24.0\nconfigure arguments: --with-compat --without-http-cache";
        let layout = Build::parse(text).unwrap().layout;
        assert_eq!((layout.request_upstream, layout.request_upstream_states), (64, 72));
        assert_eq!((layout.request_connection, layout.request_status, layout.connection_data), (8, 576, 0));
    }

    #[test]
    fn forks() {
        let angie = Build::parse("Angie version: Angie/1.13.0\nconfigure arguments: --with-compat").unwrap();
        assert_eq!((angie.family, angie.layout.log_data, angie.layout.state_status), (Family::Angie, 32, 8));
        let openresty = Build::parse("nginx version: openresty/1.21.4.1\nconfigure arguments: --with-compat").unwrap();
        assert_eq!((openresty.version, openresty.layout.request_status), ((1, 21, 4), 648));
        let text = "Tengine version: Tengine/3.2.0\nnginx version: nginx/1.24.0\n\
                    configure arguments: --add-module=modules/ngx_http_multi_upstream_module";
        let tengine = Build::parse(text).unwrap();
        assert_eq!((tengine.layout.connection_fd, tengine.layout.connection_log), (32, 96));
        let free = Build::parse("nginx version: freenginx/1.27.2\nconfigure arguments: --with-compat").unwrap();
        assert_eq!((free.layout.log_data, free.layout.log_action), (32, 56));
    }

    #[test]
    fn unreadable_texts() {
        assert_eq!(Build::parse(""), Err(LayoutError::NoVersion));
        assert_eq!(Build::parse("nginx version: nginx/one"), Err(LayoutError::NoVersion));
        assert_eq!(Build::parse("nginx version: nginx/1.14.2"), Err(LayoutError::TooOld((1, 14, 2))));
    }
}
