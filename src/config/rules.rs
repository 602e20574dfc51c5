//! What must hold between sections, and what a profile refuses. What concerns
//! one section alone is judged by that section's room.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{
    Config, Profile, Role, Setting, Settings, data_dir, master_keys,
    settings::{Origin, TWINS},
};

/// Keys by which the ring of master keys can be given; one of them is enough.
const RINGS: [&str; 3] = ["master_key", "master_key_file", "master_key_command"];

/// Fills in what follows from other keys: secrets from their files, and the
/// defaults that the data directory and the side port give.
pub(super) fn resolve(
    settings: &mut Settings,
    profile: &str,
    role: Role,
    problems: &mut Vec<String>,
) {
    let is_set = |settings: &Settings, key: &str| settings.get(key).is_some_and(Setting::is_set);
    let rings: Vec<_> = RINGS.iter().filter(|key| is_set(settings, key)).collect();
    if let [one, other, ..] = &rings[..] {
        problems.push(both(one, other, settings));
    }
    let has_ring = !rings.is_empty();
    for (key, file) in TWINS {
        if !is_set(settings, file) {
            continue;
        }
        if is_set(settings, key) {
            problems.push(both(key, file, settings));
            continue;
        }
        let path = settings.text(file).to_owned();
        match data_dir::read_secret(path.as_ref()) {
            Ok(text) => settings.derive(key, (*text).clone(), Origin::SecretFile(path.into())),
            Err(error) => problems.push(format!("`{file}`: {error}")),
        }
    }

    let data_dir = PathBuf::from(settings.text("data_dir"));
    if role == Role::Sidecar {
        resolve_sidecar(settings, &data_dir);
        return;
    }
    if !is_set(settings, "database.url") {
        let url = format!("sqlite://{}", data_dir.join(data_dir::DATABASE).display());
        settings.derive("database.url", url, Origin::Derived("data_dir"));
    }
    if profile == Profile::Production.as_str() {
        return;
    }
    if !is_set(settings, "issuer") {
        let url = format!("http://{}", settings.text("http.address"));
        settings.derive("issuer", url, Origin::Derived("http.address"));
    }
    if !has_ring {
        let path = data_dir.join(data_dir::MASTER_KEY).display().to_string();
        settings.derive("master_key_file", path, Origin::Derived("data_dir"));
    }
}

/// Beside a node on one host it needs ports of its own.
fn resolve_sidecar(settings: &mut Settings, data_dir: &Path) {
    for (key, address) in [
        ("listen.address", "127.0.0.1:50052"),
        ("http.address", "127.0.0.1:8082"),
    ] {
        if settings.get(key).is_some_and(Setting::is_default) {
            settings.derive(key, address.to_owned(), Origin::Derived("the command"));
        }
    }
    if !settings
        .get("sidecar.snapshot_file")
        .is_some_and(Setting::is_set)
    {
        let path = data_dir.join(data_dir::SNAPSHOT).display().to_string();
        settings.derive("sidecar.snapshot_file", path, Origin::Derived("data_dir"));
    }
}

fn both(key: &str, other: &str, settings: &Settings) -> String {
    let origin = |key| settings.get(key).map(|s| s.origin().to_string());
    format!(
        "`{key}` ({}) and `{other}` ({}) are both set; keep one",
        origin(key).unwrap_or_default(),
        origin(other).unwrap_or_default()
    )
}

/// Judges the whole configuration.
pub(super) fn check(
    config: &Config,
    settings: &Settings,
    role: Role,
    problems: &mut Vec<String>,
    warnings: &mut Vec<String>,
) {
    check_sections(config, role, problems);
    check_issuer(config, problems);
    if role == Role::Sidecar {
        check_sidecar(config, problems);
        return;
    }
    if config.audiences.is_empty() || config.audiences.iter().any(|a| a.trim().is_empty()) {
        problems.push("`audiences`: name at least one audience, and no empty one".to_owned());
    }
    if !config.audiences.contains(&config.own_audience) {
        problems.push(format!(
            "`own_audience` = {:?} is not in `audiences`, so that no token would be for this API; \
             add it there, or set it to one of them",
            config.own_audience
        ));
    }
    if config.client_id.trim().is_empty() {
        problems.push("`client_id`: must not be empty".to_owned());
    }
    if config.data_dir.as_os_str().is_empty() {
        problems.push("`data_dir`: name a directory".to_owned());
    }
    if config.listen.address == config.http.address && !config.listen.address.ends_with(":0") {
        problems.push("`listen.address` and `http.address` are the same; give each its own".into());
    }
    if config.listen.tls_client_ca_file.is_none() && !config.limits.trusted_workloads.is_empty() {
        problems.push(
            "`limits.trusted_workloads` needs `listen.tls_client_ca_file`: without it clients \
             show no certificate"
                .to_owned(),
        );
    }
    if config.telemetry.otlp_endpoint.contains('@') {
        problems.push("`telemetry.otlp_endpoint`: must not carry a login".to_owned());
    }
    problems.extend(master_keys::check(config));
    if config.profile == Profile::Production {
        check_production(config, problems);
        warn_production(config, settings, warnings);
    }
}

/// A sidecar seals no keys and has no database; what it knows is the nodes'.
fn check_sidecar(config: &Config, problems: &mut Vec<String>) {
    if config.issuer.is_empty() {
        problems.push(
            "`issuer`: required for a sidecar: that of the nodes, so that it follows no others"
                .to_owned(),
        );
    }
    if config.profile != Profile::Production {
        return;
    }
    check_exposed(config, problems);
    if config.sidecar.may_send_plaintext() && !config.listen.plaintext_behind_mesh {
        problems.push(
            "`sidecar.nodes`: a node on another host would be reached in plaintext; use https, or \
             set `listen.plaintext_behind_mesh` if a service mesh encrypts"
                .to_owned(),
        );
    }
}

fn check_sections(config: &Config, role: Role, problems: &mut Vec<String>) {
    // Hashing checks that it costs an attacker enough, which tests cannot pay;
    // the hash lanes themselves refuse what is not legal at all.
    let hashing = match config.profile {
        Profile::Testing => Ok(()),
        _ => config.hashing.validate(),
    };
    // A sidecar has no database, and a node follows nobody.
    let (database, sidecar) = match role {
        Role::Node => (config.database.validate(), Ok(())),
        Role::Sidecar => (Ok(()), config.sidecar.validate()),
    };
    let sections = [
        ("sidecar", sidecar),
        ("listen", config.listen.validate()),
        ("grpc_web", config.grpc_web.validate()),
        ("http", config.http.validate()),
        ("database", database),
        ("hashing", hashing),
        ("passwords", config.passwords.validate()),
        ("breached_passwords", config.breached_passwords.validate()),
        ("login_throttle", config.login_throttle.validate()),
        ("credential_stuffing", config.credential_stuffing.validate()),
        ("keys", config.keys.validate()),
        ("tokens", config.tokens.validate()),
        ("sessions", config.sessions.validate()),
        ("api_keys", config.api_keys.validate()),
        ("audit", config.audit.validate()),
        ("limits", config.limits.validate()),
        ("telemetry", config.telemetry.validate()),
    ];
    for (section, result) in sections {
        for problem in result.err().unwrap_or_default() {
            let names_it = problem.contains(&format!("{section}."));
            let prefix = if names_it {
                String::new()
            } else {
                format!("[{section}] ")
            };
            problems.push(format!("{prefix}{problem}"));
        }
    }
}

/// RFC 8414, section 2: an https URL without query and fragment. Plain http
/// passes outside production.
fn check_issuer(config: &Config, problems: &mut Vec<String>) {
    let production = config.profile == Profile::Production;
    if config.issuer.is_empty() {
        if production {
            problems.push(
                "`issuer`: required in production: the https URL that all nodes share, \
                 such as https://auth.example.com"
                    .to_owned(),
            );
        }
        return;
    }
    let legal = config.issuer.parse::<url::Url>().is_ok_and(|url| {
        let scheme = url.scheme() == "https" || (url.scheme() == "http" && !production);
        scheme
            && url.has_host()
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
    });
    if !legal {
        problems.push(
            "`issuer`: must be an https URL without user, query and fragment, \
             such as https://auth.example.com"
                .to_owned(),
        );
    }
}

/// What would be served in plaintext beyond this host.
fn check_exposed(config: &Config, problems: &mut Vec<String>) {
    let mesh = config.listen.plaintext_behind_mesh;
    if config.listen.is_plaintext_exposed() {
        problems.push(format!(
            "`listen.address` = {} would serve plaintext beyond this host; set \
             `listen.tls_certificate_file` and `listen.tls_key_file`, or listen on 127.0.0.1, or \
             set `listen.plaintext_behind_mesh` if a service mesh encrypts",
            config.listen.address
        ));
    }
    if !mesh && !stays_local(&config.http.address) {
        problems.push(format!(
            "`http.address` = {} would serve plaintext beyond this host; listen on 127.0.0.1, or \
             set `listen.plaintext_behind_mesh` if a service mesh encrypts",
            config.http.address
        ));
    }
}

fn check_production(config: &Config, problems: &mut Vec<String>) {
    check_exposed(config, problems);
    if config.master_key.is_none()
        && config.master_key_file.is_none()
        && config.master_key_command.is_empty()
    {
        problems.push(
            "`master_key_file`: required in production: a file with 32 random bytes, made once by \
             `(umask 077 && head -c 32 /dev/urandom | base64 >master.key)` and the same on all \
             nodes; or set `master_key` or `master_key_command`"
                .to_owned(),
        );
    }
    if !config.limits.rate_limits_enabled {
        problems.push(
            "`limits.rate_limits_enabled` = false leaves passwords open to guessing; remove it, \
             or run load tests with `profile` = testing"
                .to_owned(),
        );
    }
    if config.breached_passwords.is_plaintext() {
        problems.push(
            "`breached_passwords.url`: whoever is between could say that any password is good; use \
             https"
                .to_owned(),
        );
    }
    if config.database.may_send_plaintext() && !says_plaintext(config) {
        problems.push(
            "`database.url`: a PostgreSQL on another host may be reached in plaintext; add \
             `?sslmode=require`, or `?sslmode=disable` if something else encrypts"
                .to_owned(),
        );
    }
}

fn warn_production(config: &Config, settings: &Settings, warnings: &mut Vec<String>) {
    if config.database.url.starts_with("sqlite:") {
        warnings.push("SQLite serves one node only; several nodes need PostgreSQL".to_owned());
    }
    if config.database.may_send_plaintext() && says_plaintext(config) {
        warnings.push("`database.url` says that something else encrypts to PostgreSQL".to_owned());
    }
    let ahead = u64::from(config.keys.publish_ahead_seconds);
    if (1..config.http.jwks_max_age_seconds).contains(&ahead) {
        warnings.push(
            "`keys.publish_ahead_seconds` is shorter than `http.jwks_max_age_seconds`: clients \
             with a cached JWKS will not know a new signing key"
                .to_owned(),
        );
    }
    if config.reflection {
        let origin = settings.get("reflection").map(|s| s.origin().to_string());
        let origin = origin.unwrap_or_default();
        warnings.push(format!(
            "`reflection` shows the API to everybody ({origin})"
        ));
    }
    if config.listen.plaintext_behind_mesh {
        warnings.push("`listen.plaintext_behind_mesh`: plaintext beyond this host".to_owned());
    }
}

/// Whether only this host reaches the address.
fn stays_local(address: &str) -> bool {
    let loopback = |address: SocketAddr| address.ip().to_canonical().is_loopback();
    address.starts_with("unix:")
        || address.starts_with("localhost:")
        || address.parse().is_ok_and(loopback)
}

/// Whether the database's URL says in so many words that it is not encrypted.
fn says_plaintext(config: &Config) -> bool {
    config.database.url.contains("sslmode=disable")
}
