//! What has to be on the machine. Asked by effect (the program runs, the header is there) and not by package, so that a
//! node from elsewhere counts, and so that the question costs no process.

use std::path::Path;

use crate::workspace::find_program;

/// One Debian package, why it is wanted, and how its presence shows.
pub(crate) struct Need {
    /// Its name in Debian 12.
    pub(crate) package: &'static str,
    /// What it is for, for the person whose machine it is.
    pub(crate) why: &'static str,
    sign: Sign,
    /// Wanted only while bpf-linker is built.
    for_linker: bool,
}

enum Sign {
    Program(&'static str),
    /// Any of these files.
    File(&'static [&'static str]),
}

impl Need {
    const fn program(package: &'static str, name: &'static str, why: &'static str) -> Self {
        Self { package, why, sign: Sign::Program(name), for_linker: false }
    }

    const fn file(package: &'static str, file: &'static [&'static str], why: &'static str) -> Self {
        Self { package, why, sign: Sign::File(file), for_linker: false }
    }

    const fn for_linker(package: &'static str, file: &'static [&'static str], why: &'static str) -> Self {
        Self { package, why, sign: Sign::File(file), for_linker: true }
    }

    /// Whether it is there.
    pub(super) fn is_met(&self) -> bool {
        match self.sign {
            Sign::Program(name) => find_program(name).is_some(),
            Sign::File(paths) => paths.iter().any(|path| Path::new(path).exists()),
        }
    }
}

/// What only virtual machines need: `cargo xtask vm-test` asks for it, setup does not.
pub(crate) const FOR_MACHINES: &[Need] = &[
    Need::program("qemu-system-x86", "qemu-system-x86_64", "other kernels are run in emulated machines"),
    Need::program("busybox-static", "busybox", "the emulated machines have no other programs"),
];

/// What only benches need: they compare with it, and say what they do without.
pub(crate) const FOR_BENCHES: &[Need] = &[
    Need::program("tcptrace", "tcptrace", "reading old captures is compared with it"),
    Need::program("strace", "strace", "watching is compared with it"),
    Need::program("bpftrace", "bpftrace", "watching is compared with it"),
    Need::program("linux-perf", "perf", "it tells where the time goes while somebody watches"),
    Need::file("time", &["/usr/bin/time"], "it tells the memory that a program took"),
    Need::program(
        "debootstrap",
        "debootstrap",
        "Debian 12 has no Suricata: Debian 13's is put into a folder of its own",
    ),
];

/// Everything, in the order in which it is shown.
pub(crate) const ALL: &[Need] = &[
    Need::file(
        "libpcap-dev",
        &["/usr/include/pcap/pcap.h", "/usr/local/include/pcap/pcap.h"],
        "packets are captured with libpcap",
    ),
    Need::program("pkg-config", "pkg-config", "the build finds libpcap with it"),
    Need {
        package: "g++",
        why: "bpf-linker is linked with the C++ library of LLVM",
        sign: Sign::Program("g++"),
        for_linker: true,
    },
    Need::for_linker(
        "llvm-22-dev",
        &["/usr/lib/llvm-22/bin/llvm-config"],
        "bpf-linker is built on the LLVM that rustc has",
    ),
    Need::for_linker(
        "libpolly-22-dev",
        &["/usr/lib/llvm-22/lib/libPolly.a"],
        "llvm-config 22 names it among its libraries",
    ),
    Need::for_linker("libzstd-dev", &["/usr/include/zstd.h"], "a library of LLVM's"),
    Need::for_linker("zlib1g-dev", &["/usr/include/zlib.h"], "a library of LLVM's"),
    Need::program("nginx-light", "nginx", "the tests and the demo break a real nginx"),
    Need::program("nodejs", "node", "the tests and the demo have upstreams in Node.js"),
    Need::program("python3", "python3", "the tests and the demo have upstreams in Python"),
    Need::program("gunicorn", "gunicorn", "the tests have an upstream in gunicorn"),
    Need::program("uvicorn", "uvicorn", "the tests have an upstream in uvicorn"),
    Need::program("uwsgi-core", "uwsgi-core", "the tests have an upstream in uWSGI"),
    Need::file(
        "uwsgi-plugin-python3",
        &["/usr/lib/uwsgi/plugins/python3_plugin.so"],
        "the application of the uWSGI upstream is written in Python",
    ),
    Need::program("php8.2-fpm", "php-fpm8.2", "the tests have an upstream in PHP"),
    Need::file(
        "python3-grpcio",
        &["/usr/lib/python3/dist-packages/grpc/__init__.py"],
        "the tests have an upstream that speaks gRPC",
    ),
    Need::program("curl", "curl", "the tests have a client that speaks TLS and HTTP/2"),
    Need::program("openssl", "openssl", "the tests make certificates with it"),
    Need::program("iproute2", "ip", "the lab is made of network namespaces"),
    Need::program("nftables", "nft", "the lab drops and refuses packets with it"),
    Need::program("iptables", "iptables-nft", "the lab drops and refuses packets with it"),
    Need::file(
        "gunicorn-examples",
        &["/usr/share/doc/gunicorn-examples/examples/nginx.conf"],
        "the tests read the configurations of nginx that packages ship",
    ),
    Need::file(
        "nginx-doc",
        &["/usr/share/doc/nginx/examples/nginx.conf"],
        "the tests read the configurations of nginx that packages ship",
    ),
    Need::program("bpftool", "bpftool", "the tests look with it whether anything stayed attached"),
    Need::program("tcpdump", "tcpdump", "the tests compare with what it captures"),
    Need::program("tshark", "tshark", "the tests compare with what it dissects"),
    Need::program("chromium", "chromium", "the tests open the report in it, headless"),
    Need::program("wrk", "wrk", "the tests make load with it"),
    Need::program("zstd", "zstd", "the tests compress captures with it"),
];

/// What is not there, of what is wanted.
pub(crate) fn missing(linker_is_built: bool) -> Vec<&'static Need> {
    ALL.iter().filter(|need| (linker_is_built || !need.for_linker) && !need.is_met()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presence_is_asked_by_effect() {
        assert!(Need::program("dash", "sh", "").is_met());
        assert!(!Need::program("none", "no-such-program-502", "").is_met());
        assert!(Need::for_linker("base-files", &["/no/such/file", "/etc/os-release"], "").is_met());
        assert!(!Need::for_linker("none", &["/no/such/file"], "").is_met());
    }

    #[test]
    fn what_only_the_linker_needs_is_wanted_only_then() {
        let without: Vec<&str> = missing(false).iter().map(|need| need.package).collect();
        assert!(
            !without.iter().any(|package| ["llvm-22-dev", "g++", "libpolly-22-dev"].contains(package)),
            "{without:?}"
        );
    }
}
