use super::*;
use crate::model::net::Address;

fn layout(text: &str) -> Layout {
    read(text).unwrap()
}

#[test]
fn a_pass_has_what_is_in_force_where_it_stands() {
    let text = "http {\n proxy_read_timeout 5s;\n proxy_set_header A 1; proxy_set_header B 2;\n server {\n  server_name shop.example;\n  location /api/ {\n   proxy_set_header C 3;\n   proxy_pass https://app.example/v1/;\n  }\n } }";
    let layout = layout(text);
    let [pass] = layout.passes.as_slice() else { panic!("{:?}", layout.passes) };
    assert_eq!((pass.place.line, pass.tls, pass.host.as_str()), (8, true, "app.example"));
    assert_eq!(pass.target, Target::Name("app.example".into(), Some(443)));
    assert_eq!(pass.uri.as_deref(), Some("/v1/"));
    assert_eq!(layout.of_pass(pass, "read_timeout"), Some("5s"));
    let block = layout.block_of(pass).unwrap();
    let headers: Vec<_> = block.lines("proxy_set_header").iter().map(|line| line.arguments.join("=")).collect();
    assert_eq!(headers, ["C=3"], "the block's own lines replace those around");
    assert_eq!(*block.server_names, ["shop.example".to_owned()]);
    assert_eq!(block.title(), "location /api/");
    assert_eq!(pass.place.to_string(), "line 8");
}

#[test]
fn variables_with_literal_values_are_followed() {
    let text = concat!(
        "http { map $host $pool { default app1:81; b.example app2:82; }\n",
        "server { set $up http://127.0.0.1:8000; location / { proxy_pass $up; }\n",
        "location /b { proxy_pass http://$pool$request_uri; } location /c { proxy_pass http://$arg_x; } } }"
    );
    let layout = layout(text);
    let found: Vec<_> = layout.passes.iter().map(|pass| (pass.target.clone(), pass.at_run_time)).collect();
    let expected = [
        (Target::Address(Address::parse("127.0.0.1:8000").unwrap()), true),
        (Target::Name("app1".into(), Some(81)), true),
        (Target::Name("app2".into(), Some(82)), true),
        (Target::Variable, true),
    ];
    assert_eq!(found, expected);
}

#[test]
fn unix_sockets_and_other_protocols() {
    let text = "http { server { location /a { fastcgi_pass unix:/run/php.sock; } location /b { proxy_pass http://unix:/run/x.sock:/y; } location /c { grpc_pass grpcs://h:1; } } }";
    let layout = layout(text);
    let hosts: Vec<_> =
        layout.passes.iter().map(|pass| (pass.protocol, pass.host.as_str(), pass.uri.as_deref(), pass.tls)).collect();
    let expected = [
        (Protocol::FastCgi, "unix:/run/php.sock", None, false),
        (Protocol::Http, "unix:/run/x.sock", Some("/y"), false),
        (Protocol::Grpc, "h:1", None, true),
    ];
    assert_eq!(hosts, expected);
}

#[test]
fn many_values_are_not_kept_in_every_block() {
    let entries = (0..100_000).map(|n| format!("h{n}.example http://h{n}.internal:81;")).collect::<Vec<_>>().join("\n");
    let location = "location / { proxy_pass $backend; }";
    let server =
        format!("server {{ limit_rate 1k; {} {location} }}", "location /a { proxy_pass http://10.0.0.1; }".repeat(5));
    let text = format!("http {{ proxy_read_timeout 5s; map $host $backend {{ {entries} }} {} }}", server.repeat(300));
    let layout = layout(&text);
    assert_eq!((layout.blocks.len(), layout.passes.len()), (2 + 300 * 7, 300 * 6));
    let [.., pass] = layout.passes.as_slice() else { panic!() };
    assert_eq!((&pass.target, layout.of_pass(pass, "read_timeout")), (&Target::Variable, Some("5s")));
    // All of them share what stands around them.
    let http = &layout.blocks[1];
    assert!(layout.blocks[1..].iter().all(|block| Arc::ptr_eq(&block.variables, &http.variables)));
    assert!(http.variables["backend"].len() <= VALUES + 1);
    assert!(layout.blocks.iter().all(|block| block.scope.own.len() <= 2));
}

#[test]
fn a_value_that_is_not_literal_counts_behind_many_others() {
    let entries = (0..100).map(|n| format!("h{n} 10.0.0.{n};")).collect::<Vec<_>>().join(" ");
    let literal = |set: &str| {
        let text = format!(
            "http {{ map $host $pool {{ {entries} }} server {{ {set} location / {{ proxy_pass http://$pool$arg_x; }} }} }}"
        );
        layout(&text).blocks.pop().unwrap().variables["pool"].iter().all(|value| !value.contains('$'))
    };
    assert!(literal("") && !literal("if ($a) { set $pool $b; }"));
}
