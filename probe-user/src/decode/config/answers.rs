//! Whether every failed answer announces itself: by a complaint of nginx, by an error page, or by an upstream's own status.
//!
//! nginx is asked about the final status of such requests only, unless its configuration has something that answers in another way.

use super::{Directive, blocks, walk};

/// The first directive that can make an answer a failure without a word about its request before; `None`: there is none.
pub(super) fn unannounced(main: &[Directive]) -> Option<String> {
    let mut found = None;
    let mut see = |directive: &Directive| {
        if found.is_none() && is_unannounced(directive) {
            let place = if directive.file.is_empty() { String::new() } else { format!(" in {}", directive.file) };
            let text = [std::slice::from_ref(&directive.name), &directive.arguments].concat().join(" ");
            let text: String = text.chars().take(80).collect();
            found = Some(format!("{text}{place}:{}", directive.line));
        }
    };
    for directive in main.iter().filter(|directive| !matches!(directive.name.as_str(), "stream" | "mail")) {
        see(directive);
    }
    for http in blocks(main, "http") {
        walk(http, &mut see);
    }
    found
}

/// Modules of nginx's own repository and usual others, which answer nothing by themselves or by an error page: how their files' names begin.
/// "stream" alone is in the names of modules of `upstream`, too.
const SILENT_MODULES: &[&str] = &[
    "ngx_http_geoip",
    "ngx_http_image_filter",
    "ngx_http_xslt",
    "ngx_mail_",
    "ngx_stream_",
    "ngx_http_headers_more",
    "ngx_http_brotli",
    "ngx_otel",
    "ngx_http_zstd",
];

fn is_unannounced(directive: &Directive) -> bool {
    let arguments: Vec<&str> = directive.arguments.iter().map(String::as_str).collect();
    let first = arguments.first().copied().unwrap_or_default();
    match directive.name.as_str() {
        // What a cache answers was a failure before, or is one that is kept; of HTTP/2 and 3 several answers share a connection; the last
        // are answers inside of answers.
        "proxy_cache" | "fastcgi_cache" | "uwsgi_cache" | "scgi_cache" | "srcache_fetch" | "http2" | "http3"
        | "auth_request" | "ssi" | "mirror" => first != "off",
        // With a text it is no error page.
        "return" => arguments.len() > 1 && !matches!(first.as_bytes().first(), Some(b'2' | b'3' | b'4')),
        "listen" => arguments.iter().any(|word| matches!(*word, "http2" | "quic" | "spdy")),
        "add_before_body" | "add_after_body" => !first.is_empty(),
        "slice" => first != "0",
        // Failures that are not written are not told.
        "error_log" => arguments.iter().skip(1).any(|word| matches!(*word, "crit" | "alert" | "emerg")),
        // nginx has written its status down by then, as of an answer that is out.
        "error_page" => arguments.contains(&"416") && arguments.iter().any(|word| word.starts_with("=5")),
        "load_module" => {
            let file = first.rsplit('/').next().unwrap_or_default();
            !SILENT_MODULES.iter().any(|name| file.starts_with(name))
        }
        // Programs answer as they like.
        name => name.contains("_by_lua") || name.starts_with("js_") || name.starts_with("perl"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode;

    fn of(http: &str) -> Option<String> {
        decode(&format!("events {{}} http {{ server {{ listen 80; location / {{ {http} }} }} }}")).unwrap().unannounced
    }

    #[test]
    fn a_plain_proxy_announces_its_failures() {
        for plain in [
            "proxy_pass http://127.0.0.1:8000;",
            "fastcgi_pass unix:/run/php.sock; proxy_cache off; auth_request off;",
            "return 200 ok;",
            "return 502;",
            "return 404 \"not here\";",
            "error_page 404 416 =404 /none; error_page 404 =502 /sorry;",
            "error_page 502 = @other; error_log /var/log/nginx/error.log warn; error_log /dev/null;",
            "if ($bad) { return 503; }",
        ] {
            assert_eq!(of(plain), None, "{plain}");
        }
    }

    #[test]
    fn what_answers_by_itself_is_named() {
        for silent in [
            "proxy_cache one;",
            "uwsgi_cache $zone;",
            "return 502 \"sorry\";",
            "if ($bad) { return 503 sorry; }",
            "auth_request /auth;",
            "ssi on;",
            "mirror /copy;",
            "content_by_lua_block { ngx.exit(502) }",
            "js_content main.answer;",
            "perl hello::handler;",
            "error_log /var/log/nginx/error.log crit;",
            "add_after_body /foot;",
            "slice 1m;",
            "error_page 416 =502 /sorry;",
        ] {
            let named = of(silent).unwrap_or_else(|| panic!("{silent}"));
            assert!(named.ends_with(":1"), "{named}");
        }
    }

    #[test]
    fn so_are_several_answers_on_one_connection_and_modules_nobody_knows() {
        for text in [
            "events {} http { server { listen 443 ssl http2; } }",
            "events {} http { server { listen 443 quic reuseport; } }",
            "events {} http { http2 on; server { listen 443 ssl; } }",
            "load_module modules/ngx_http_lua_module.so; events {} http { server { } }",
            "load_module modules/ngx_http_upstream_fair_module.so; events {} http { server { } }",
            "load_module /usr/lib/nginx/modules/ngx_http_push_stream_module.so; events {} http { server { } }",
            "error_log /var/log/nginx/error.log emerg; events {} http { server { } }",
        ] {
            assert!(decode(text).unwrap().unannounced.is_some(), "{text}");
        }
        for text in [
            "load_module modules/ngx_stream_module.so; events {} stream { server { listen 1 ssl; } } http { server { } }",
            "load_module /usr/lib/nginx/modules/ngx_stream_geoip2_module.so; events {} http { server { } }",
            "load_module modules/ngx_http_geoip_module.so; events {} http { http2 off; server { listen [::]:80; } }",
        ] {
            assert_eq!(decode(text).unwrap().unannounced, None, "{text}");
        }
    }
}
