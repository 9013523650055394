//! The blocks of a configuration with everything that is in force in each of them, and the places where nginx hands requests on.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use super::{
    ConfigError,
    address::{self, Target},
    tree::{self, Directive},
};

/// Values that a variable may have at most before it counts as unknown: a `map` may have thousands.
const VALUES: usize = 16;

/// Where something is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, as the dump names it; empty for a plain text.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.file.is_empty() { write!(f, "line {}", self.line) } else { write!(f, "{}:{}", self.file, self.line) }
    }
}

/// A directive without its block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Its arguments, unquoted.
    pub arguments: Vec<String>,
    /// Where it stands.
    pub place: Place,
}

/// Directive → its lines in one block.
pub type Settings = BTreeMap<String, Vec<Line>>;

/// What is in force in a block. Those inside share it: of thousands of blocks none repeats what stands around it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Scope {
    own: Settings,
    around: Option<Arc<Scope>>,
}

/// Variables with the literal values they may have.
type Variables = BTreeMap<String, Arc<BTreeSet<String>>>;

/// What kind of block it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The top level.
    Main,
    /// `http`.
    Http,
    /// `server`.
    Server,
    /// `location`.
    Location,
    /// `if` and `limit_except`: a location's settings, for some requests.
    Condition,
}

/// A block in which requests are handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// What it is.
    pub kind: Kind,
    /// Its words after the name: a location's modifier and pattern.
    pub arguments: Vec<String>,
    /// Where it begins.
    pub place: Place,
    /// Names of the server around it, where there is one.
    pub server_names: Arc<[String]>,
    /// What is written in it.
    pub own: Vec<Line>,
    scope: Arc<Scope>,
    variables: Arc<Variables>,
}

/// An `upstream` block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Where it begins.
    pub place: Place,
    /// Its servers.
    pub servers: Vec<Server>,
    /// Its other directives.
    pub settings: Settings,
}

/// A `server` of an `upstream` block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// As written.
    pub name: String,
    /// Where it leads.
    pub target: Option<Target>,
    /// `max_fails=1`, `down` and so on.
    pub parameters: Vec<String>,
    /// Where it stands.
    pub place: Place,
}

/// How nginx speaks to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// `proxy_pass`
    Http,
    /// `fastcgi_pass`
    FastCgi,
    /// `uwsgi_pass`
    Uwsgi,
    /// `scgi_pass`
    Scgi,
    /// `grpc_pass`
    Grpc,
    /// `memcached_pass`
    Memcached,
}

/// One place a request may be handed on to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Where the directive stands.
    pub place: Place,
    /// Its argument as written.
    pub argument: String,
    /// The argument with its variables replaced, where they are known.
    pub resolved: String,
    /// How the upstream is spoken to.
    pub protocol: Protocol,
    /// Over TLS.
    pub tls: bool,
    /// The host as written, with its port: what `$proxy_host` is.
    pub host: String,
    /// Where it leads.
    pub target: Target,
    /// What replaces the location's prefix.
    pub uri: Option<String>,
    /// The argument has variables, so a name in it is resolved for every request.
    pub at_run_time: bool,
    /// The block it stands in: an index into [`Layout::blocks`].
    pub block: usize,
}

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The blocks of `http`, and the top level as the first.
    pub blocks: Vec<Block>,
    /// The `upstream` blocks of `http`.
    pub groups: Vec<Group>,
    /// The places where requests are handed on.
    pub passes: Vec<Pass>,
    /// `worker_connections`, which stands in a block of its own.
    pub worker_connections: Option<u64>,
    /// Included files that are not there.
    pub missing_includes: Vec<String>,
}

impl Protocol {
    const ALL: [(&'static str, Self); 6] = [
        ("proxy", Self::Http),
        ("fastcgi", Self::FastCgi),
        ("uwsgi", Self::Uwsgi),
        ("scgi", Self::Scgi),
        ("grpc", Self::Grpc),
        ("memcached", Self::Memcached),
    ];

    /// What its directives' names begin with.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Http => "proxy",
            Self::FastCgi => "fastcgi",
            Self::Uwsgi => "uwsgi",
            Self::Scgi => "scgi",
            Self::Grpc => "grpc",
            Self::Memcached => "memcached",
        }
    }

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::FastCgi => "FastCGI",
            Self::Uwsgi => "uwsgi",
            Self::Scgi => "SCGI",
            Self::Grpc => "gRPC",
            Self::Memcached => "memcached",
        }
    }
}

impl Block {
    /// The first argument of a directive that is in force here.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.lines(name).last()?.arguments.first().map(String::as_str)
    }

    /// The lines of a directive that are in force here. A block that has a directive replaces all lines of the blocks around.
    #[must_use]
    pub fn lines(&self, name: &str) -> &[Line] {
        let mut scopes = std::iter::successors(Some(&self.scope), |scope| scope.around.as_ref());
        scopes.find_map(|scope| scope.own.get(name)).map_or(&[], Vec::as_slice)
    }

    /// `location /api/`, `server shop.example`.
    #[must_use]
    pub fn title(&self) -> String {
        match self.kind {
            Kind::Main => "the top level".to_owned(),
            Kind::Http => "http".to_owned(),
            Kind::Server => format!("server {}", self.server_names.join(" ")).trim_end().to_owned(),
            Kind::Location => format!("location {}", self.arguments.join(" ")),
            Kind::Condition => format!("if {}", self.arguments.join(" ")),
        }
    }
}

impl Layout {
    /// The group of this name; groups are compared without case.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name.eq_ignore_ascii_case(name))
    }

    /// The block a pass stands in.
    #[must_use]
    pub fn block_of(&self, pass: &Pass) -> Option<&Block> {
        self.blocks.get(pass.block)
    }

    /// A directive's first argument in force at a pass, by its name's end: `connect_timeout` for `proxy_connect_timeout`.
    #[must_use]
    pub fn of_pass(&self, pass: &Pass, end: &str) -> Option<&str> {
        self.block_of(pass)?.value(&format!("{}_{end}", pass.protocol.prefix()))
    }
}

/// Reads a dump or a plain file.
pub fn read(text: &str) -> Result<Layout, ConfigError> {
    let tree = tree::parse(text)?;
    let mut layout = Layout { missing_includes: tree.missing_includes, ..Layout::default() };
    let main = Block {
        kind: Kind::Main,
        arguments: Vec::new(),
        place: Place::default(),
        server_names: Arc::default(),
        own: Vec::new(),
        scope: Arc::default(),
        variables: Arc::default(),
    };
    layout.walk(&tree.directives, main);
    let events = super::blocks(&tree.directives, "events");
    layout.worker_connections = events.filter_map(|inside| super::number(inside, "worker_connections")).last();
    layout.passes = (0..layout.blocks.len()).flat_map(|index| passes(&layout, index)).collect();
    Ok(layout)
}

impl Layout {
    fn walk(&mut self, inside: &[Directive], mut block: Block) {
        block.own = inside.iter().filter(|directive| directive.block.is_none()).map(line).collect();
        let mut own = Settings::new();
        for line in &block.own {
            own.entry(line.name.clone()).or_default().push(line.clone());
        }
        block.scope = Arc::new(Scope { own, around: Some(block.scope) });
        for directive in inside {
            let words = directive.arguments.as_slice();
            match (directive.name.as_str(), words) {
                // Inner values come on top: which of them a request meets depends on its way through the blocks.
                ("set", [name, value]) if !value.contains('$') => add(&mut block.variables, name, value),
                ("map", [_, name]) => {
                    for entry in directive.block.iter().flatten() {
                        if let Some(value) = entry.arguments.first().filter(|value| !value.contains('$')) {
                            add(&mut block.variables, name, value);
                        }
                    }
                }
                ("upstream", [name, ..]) if block.kind == Kind::Http => self.groups.push(group(name, directive)),
                _ => {}
            }
        }
        // A server's `set` in an `if` counts as one more value.
        for condition in inside.iter().filter(|directive| directive.name == "if") {
            for directive in condition.block.iter().flatten().filter(|directive| directive.name == "set") {
                if let [name, value] = directive.arguments.as_slice() {
                    add(&mut block.variables, name, value);
                }
            }
        }
        if block.kind == Kind::Server {
            let names = block.lines("server_name").iter().flat_map(|line| line.arguments.clone());
            block.server_names = names.filter(|name| !name.is_empty()).collect();
        }
        let (kind_around, server_names) = (block.kind, Arc::clone(&block.server_names));
        let (scope, variables) = (Arc::clone(&block.scope), Arc::clone(&block.variables));
        self.blocks.push(block);
        for directive in inside {
            let kind = match (kind_around, directive.name.as_str()) {
                (Kind::Main, "http") => Kind::Http,
                (Kind::Http, "server") => Kind::Server,
                (Kind::Server | Kind::Location, "location") => Kind::Location,
                (Kind::Server | Kind::Location, "if" | "limit_except") => Kind::Condition,
                _ => continue,
            };
            let inner = Block {
                kind,
                arguments: directive.arguments.clone(),
                place: place(directive),
                server_names: Arc::clone(&server_names),
                own: Vec::new(),
                scope: Arc::clone(&scope),
                variables: Arc::clone(&variables),
            };
            self.walk(directive.block.as_deref().unwrap_or_default(), inner);
        }
    }
}

/// One more value. Of too many, none is followed: one more than can be is as good as a hundred thousand.
fn add(variables: &mut Arc<Variables>, name: &str, value: &str) {
    let name = name.trim_start_matches('$');
    let is_of_no_use = |values: &Arc<BTreeSet<String>>| {
        // A value that is not literal keeps the variable as it is, whatever else it may be.
        values.contains(value)
            || values.len() > VALUES && (!value.contains('$') || values.iter().any(|v| v.contains('$')))
    };
    if !variables.get(name).is_some_and(is_of_no_use) {
        let values = Arc::make_mut(variables).entry(name.to_owned()).or_default();
        Arc::make_mut(values).insert(value.to_owned());
    }
}

fn place(directive: &Directive) -> Place {
    Place { file: Arc::clone(&directive.file), line: directive.line }
}

fn line(directive: &Directive) -> Line {
    Line { name: directive.name.clone(), arguments: directive.arguments.clone(), place: place(directive) }
}

fn group(name: &str, directive: &Directive) -> Group {
    let mut group =
        Group { name: name.to_owned(), place: place(directive), servers: Vec::new(), settings: Settings::new() };
    for inside in directive.block.iter().flatten() {
        match (inside.name.as_str(), inside.arguments.split_first()) {
            ("server", Some((name, parameters))) => group.servers.push(Server {
                name: name.clone(),
                target: address::server(name),
                parameters: parameters.to_vec(),
                place: place(inside),
            }),
            _ => group.settings.entry(inside.name.clone()).or_default().push(line(inside)),
        }
    }
    group
}

/// The passes written in a block, one for every value its variables may have.
fn passes(layout: &Layout, index: usize) -> Vec<Pass> {
    let Some(block) = layout.blocks.get(index) else { return Vec::new() };
    let mut found = Vec::new();
    for line in &block.own {
        let protocol = Protocol::ALL
            .into_iter()
            .find(|(prefix, _)| line.name.strip_prefix(prefix).is_some_and(|rest| rest == "_pass"));
        let (Some((_, protocol)), Some(argument)) = (protocol, line.arguments.first()) else { continue };
        for resolved in substitute(argument, &block.variables) {
            let Some(passed) = address::passed(&line.name, &resolved) else { continue };
            found.push(Pass {
                place: line.place.clone(),
                argument: argument.clone(),
                resolved,
                protocol,
                tls: passed.tls,
                host: passed.host,
                target: passed.target,
                uri: passed.uri,
                at_run_time: argument.contains('$'),
                block: index,
            });
        }
    }
    found
}

/// The texts a word may stand for; what has no known value keeps its variables.
fn substitute(word: &str, variables: &Variables) -> Vec<String> {
    let mut texts = vec![word.to_owned()];
    // A value may not hold another variable, so one round for each variable is enough.
    for _ in 0..4 {
        let mut next = Vec::new();
        for text in &texts {
            match known_variable(text, variables) {
                None => next.push(text.clone()),
                Some((start, end, values)) => {
                    next.extend(values.iter().map(|value| format!("{}{value}{}", &text[..start], &text[end..])));
                }
            }
        }
        if next.len() > VALUES {
            return vec![word.to_owned()];
        }
        if next == texts {
            break;
        }
        texts = next;
    }
    texts
}

/// The first variable in a text that has known values: where it begins and ends, and what they are.
fn known_variable<'a>(text: &str, variables: &'a Variables) -> Option<(usize, usize, &'a BTreeSet<String>)> {
    for (start, _) in text.match_indices('$') {
        let rest = &text[start + 1..];
        let (name, end) = if let Some(braced) = rest.strip_prefix('{') {
            let length = braced.find('}')?;
            (&braced[..length], start + length + 3)
        } else {
            let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            (&rest[..length], start + 1 + length)
        };
        if let Some(values) = variables.get(name)
            && values.iter().all(|value| !value.contains('$'))
        {
            return Some((start, end, values));
        }
    }
    None
}
