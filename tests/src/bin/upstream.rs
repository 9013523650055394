//! The lab's own upstream server as a program; see `probe_tests::server`.

fn main() -> anyhow::Result<()> {
    probe_tests::server::serve(std::env::args().skip(1))
}
