//! The faults by name, once: a test of each for every suite that goes through all of them.

/// Makes a test of every fault: `each_fault!(prove)` calls `prove("upstream-refused")` in a test named `upstream_refused`, and so on; and
/// a test that none is left out. `prove` takes the name and gives a `Result`.
#[macro_export]
macro_rules! each_fault {
    ($prove:path) => {
        $crate::each_fault! { $prove =>
            upstream_refused
            upstream_refused_v6
            syn_timeout_nginx
            syn_timeout_kernel
            no_live_upstreams
            masked_retry
            upstream_reset
            upstream_reset_unread
            upstream_reset_late
            premature_close
            premature_close_half
            premature_close_late
            keepalive_race_post
            keepalive_race_get
            keepalive_race_reset
            keepalive_race_unread
            read_timeout
            header_too_big
            fd_exhausted_nginx
            fd_exhausted_upstream_node
            fd_exhausted_upstream_accept
            fd_exhausted_upstream_dial
            fd_exhausted_upstream_open
            upstream_sent_502_dial
            harmless_answers
            harmless_return
            harmless_abort
        }
    };
    ($prove:path => $($test:ident)*) => {
        $(
            #[test]
            fn $test() -> ::anyhow::Result<()> {
                $prove(&stringify!($test).replace('_', "-"))
            }
        )*

        #[test]
        fn every_fault_has_its_test() {
            let tested: Vec<String> = [$(stringify!($test)),*].iter().map(|name| name.replace('_', "-")).collect();
            let all: Vec<&str> = $crate::fault::Fault::all().iter().map(|fault| fault.name).collect();
            assert_eq!(tested, all);
        }
    };
}
