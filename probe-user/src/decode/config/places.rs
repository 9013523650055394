//! Where requests are answered, and what holds there: `server` and `location` blocks with their own directives and those around them.
//! (Choice of a location: `ngx_http_core_find_location` in `http/ngx_http_core_module.c`.)

use super::{
    address::{self, Target},
    inherit::{self, PROTOCOLS, Scope},
    tree::Directive,
};
use crate::model::host::{Pass, Place, Takes};

/// Places at most: a configuration generated for thousands of hosts is not kept whole for the sake of a sentence.
const PLACES: usize = 20_000;
/// What they may take together, in bytes of text: each names its server's names and what is in force anew.
const BYTES: usize = 32 << 20;

/// Beginnings of directives of modules that can make any answer.
const SCRIPTS: &[&str] =
    &["content_by_lua", "access_by_lua", "rewrite_by_lua", "js_content", "perl", "header_filter_by_lua"];

/// Every place of an `http` block.
pub(super) fn of_http(http: &[Directive]) -> Vec<Place> {
    let scope = inherit::scope(&Scope::new(), http);
    let errors = error_pages(http).unwrap_or_default();
    let mut places = Places::default();
    for (number, server) in super::blocks(http, "server").enumerate() {
        let names: Vec<String> = server
            .iter()
            .filter(|directive| directive.name == "server_name")
            .flat_map(|directive| directive.arguments.iter().map(|name| name.to_lowercase()))
            .collect();
        let root = Place { server: number, names, ..Place::default() };
        walk(&root, server, &scope, &errors, &mut places);
    }
    if places.are_too_many() { Vec::new() } else { places.all }
}

/// The places, and what they take.
#[derive(Default)]
struct Places {
    all: Vec<Place>,
    bytes: usize,
}

impl Places {
    fn push(&mut self, place: Place) {
        let values = place.values.iter().map(|(name, value)| name.len() + value.len());
        let names = place.names.iter().chain(&place.answers_502).map(String::len);
        self.bytes += values.chain(names).sum::<usize>();
        self.all.push(place);
    }

    const fn are_too_many(&self) -> bool {
        self.all.len() > PLACES || self.bytes > BYTES
    }
}

fn walk(like: &Place, directives: &[Directive], around: &Scope<'_>, errors: &[String], places: &mut Places) {
    if places.are_too_many() {
        return;
    }
    let scope = inherit::scope(around, directives);
    // `error_page` is inherited only where none stands.
    let errors = error_pages(directives).unwrap_or_else(|| errors.to_vec());
    let pass = directives.iter().find_map(pass);
    let mut place = Place {
        values: inherit::in_force(&scope, pass.as_ref().map(|pass| pass.protocol)),
        answers_502: errors.clone(),
        scripted: scripted(directives).or_else(|| like.scripted.clone()),
        rewrites: like.rewrites || directives.iter().any(|directive| directive.name == "rewrite"),
        pass,
        ..like.clone()
    };
    place.answers_502.extend(directives.iter().filter(|directive| answers(directive)).map(written));
    place.answers_502.extend(
        ["limit_req_status", "limit_conn_status"]
            .iter()
            .filter(|name| scope.get(*name).is_some_and(|value| value == "502"))
            .map(|name| format!("{name} 502")),
    );
    let (server, names) = (place.server, place.names.clone());
    let inner = Place { server, names, scripted: place.scripted.clone(), rewrites: place.rewrites, ..Place::default() };
    // What stands beside the locations of a server answers first: its `return` is every location's.
    places.push(place);
    for directive in directives {
        let Some(inside) = directive.block.as_deref() else { continue };
        let takes = match directive.name.as_str() {
            "location" => takes(&directive.arguments),
            "if" | "limit_except" => Takes::Internal(written(directive)),
            _ => continue,
        };
        walk(&Place { takes, ..inner.clone() }, inside, &scope, &errors, places);
    }
}

fn takes(arguments: &[String]) -> Takes {
    match arguments {
        [sign, path] if sign == "=" => Takes::Exact(path.clone()),
        [sign, path] if sign == "^~" => Takes::Prefix { path: path.clone(), preferred: true },
        [sign, expression] if sign.starts_with('~') => Takes::Expression(expression.clone()),
        [path] if path.starts_with('@') => Takes::Internal(path.clone()),
        // The sign may stand right before the path.
        [path] => match (path.strip_prefix('='), path.strip_prefix("^~"), path.strip_prefix('~')) {
            (Some(path), ..) => Takes::Exact(path.to_owned()),
            (_, Some(path), _) => Takes::Prefix { path: path.to_owned(), preferred: true },
            (.., Some(expression)) => Takes::Expression(expression.to_owned()),
            _ => Takes::Prefix { path: path.clone(), preferred: false },
        },
        _ => Takes::Internal(arguments.join(" ")),
    }
}

/// The `error_page` directives of a block that answer 502; `None`: it has no `error_page` at all.
fn error_pages(directives: &[Directive]) -> Option<Vec<String>> {
    let mut pages = directives.iter().filter(|directive| directive.name == "error_page").peekable();
    pages.peek()?;
    Some(pages.filter(|page| page.arguments.iter().any(|argument| argument == "=502")).map(written).collect())
}

/// Whether a directive itself can answer 502.
fn answers(directive: &Directive) -> bool {
    let arguments = &directive.arguments;
    match directive.name.as_str() {
        "return" => arguments.first().is_some_and(|code| code == "502"),
        "try_files" => arguments.last().is_some_and(|last| last == "=502"),
        _ => false,
    }
}

fn scripted(directives: &[Directive]) -> Option<String> {
    let script = |directive: &&Directive| SCRIPTS.iter().any(|name| directive.name.starts_with(name));
    directives.iter().find(script).map(|directive| directive.name.clone())
}

fn pass(directive: &Directive) -> Option<Pass> {
    let protocol = PROTOCOLS.iter().find(|protocol| directive.name.strip_suffix("_pass") == Some(**protocol))?;
    let (address, name) = match address::pass(&directive.name, directive.arguments.first()?)? {
        Target::Address(address) => (Some(address), None),
        Target::Name(name, _) => (None, Some(name)),
        Target::Variable => (None, None),
    };
    Some(Pass { protocol, address, name })
}

/// A directive as one writes it.
fn written(directive: &Directive) -> String {
    let quoted = directive.arguments.iter().map(|argument| {
        let plain = !argument.is_empty() && !argument.contains([' ', '\n', '\t', ';', '{', '"']);
        if plain { argument.clone() } else { format!("\"{}\"", argument.replace('\n', "\\n").replace('"', "\\\"")) }
    });
    std::iter::once(directive.name.clone()).chain(quoted).collect::<Vec<_>>().join(" ")
}
