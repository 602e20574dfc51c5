//! `user`: accounts, made and changed without a token. That is how the first
//! administrator comes to be.

use std::{
    fmt,
    io::{self, Read},
    str::FromStr,
};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use super::{Format, table::table};
use crate::{
    domain::{
        Call, DisplayName, Email, Identifier, Invalid, Metadata, PageSize, Password, RoleName,
        User, UserId, UserStatus, Username, user::UserFilter,
    },
    service::{
        Core, keyring,
        once::{Made, Repeatable},
        password,
        password_hash::{self, Resealed},
        users,
    },
    store,
};

/// What can be done with accounts.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Create an account
    #[command(after_help = "\
Examples:
  countersign user create --email ana@example.com --role admin
  pass show ana | countersign user create --email ana@example.com --password-stdin")]
    Create(Create),
    /// List accounts, the newest last
    List(List),
    /// Set a new password and end all sessions of the account
    SetPassword(SetPassword),
    /// Forget the failed logins of an account, so that it may log in at once
    #[command(after_help = "Example:\n  countersign user unlock ana@example.com")]
    Unlock(Unlock),
    /// Store all password hashes as `passwords.seal_hashes` says, under the newest key
    Reseal,
    /// Give an account a role
    #[command(after_help = "Example:\n  countersign user grant ana@example.com admin")]
    Grant(Grant),
}

/// Arguments of `user create`.
#[derive(Debug, Clone, Args)]
pub struct Create {
    /// E-mail address to log in with
    #[arg(long)]
    pub email: Email,
    /// Second name to log in with
    #[arg(long)]
    pub username: Option<Username>,
    /// Name for people
    #[arg(long, value_name = "NAME")]
    pub display_name: Option<DisplayName>,
    /// Role to give it, such as admin; may be repeated
    #[arg(long = "role", value_name = "ROLE")]
    pub roles: Vec<RoleName>,
    /// Where the password comes from.
    #[command(flatten)]
    pub password: PasswordSource,
}

/// Arguments of `user list`.
#[derive(Debug, Clone, Args)]
pub struct List {
    /// Only accounts whose address starts with this
    #[arg(long, value_name = "TEXT")]
    pub email_prefix: Option<String>,
    /// Only accounts with this role
    #[arg(long)]
    pub role: Option<RoleName>,
    /// Only accounts in this state; without it, active and disabled ones
    #[arg(long, value_parser = parse_status, value_name = "active|disabled|deleted")]
    pub status: Option<UserStatus>,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Arguments of `user set-password`.
#[derive(Debug, Clone, Args)]
pub struct SetPassword {
    /// E-mail address, username or id
    pub account: Account,
    /// Where the password comes from.
    #[command(flatten)]
    pub password: PasswordSource,
}

/// Arguments of `user unlock`.
#[derive(Debug, Clone, Args)]
pub struct Unlock {
    /// E-mail address, username or id
    pub account: Account,
}

/// Arguments of `user grant`.
#[derive(Debug, Clone, Args)]
pub struct Grant {
    /// E-mail address, username or id
    pub account: Account,
    /// Role, such as admin
    pub role: RoleName,
}

/// Where a password comes from: a prompt, unless standard input is asked for.
/// Never an argument, which other users can see.
#[derive(Debug, Clone, Default, Args)]
pub struct PasswordSource {
    /// Read the password from standard input instead of asking for it
    #[arg(long)]
    pub password_stdin: bool,
}

/// An account as people name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// By its id.
    Id(UserId),
    /// By its address or username.
    Identifier(Identifier),
}

impl FromStr for Account {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        text.parse()
            .map(Self::Identifier)
            .map_err(|_: Invalid| Invalid::new("must be an e-mail address, a username or an id"))
    }
}

fn parse_status(text: &str) -> Result<UserStatus, Invalid> {
    [
        UserStatus::Active,
        UserStatus::Disabled,
        UserStatus::Deleted,
    ]
    .into_iter()
    .find(|status| status.as_str() == text)
    .ok_or_else(|| Invalid::new("must be active, disabled or deleted"))
}

impl PasswordSource {
    /// Reads a password: all of standard input less one line end, or what is
    /// typed twice without being shown. Whether it is good enough is for the
    /// service to say. Blocks.
    pub fn read(&self) -> anyhow::Result<Password> {
        if self.password_stdin {
            from_input(io::stdin().lock())
        } else {
            from_prompt(rpassword::prompt_password)
        }
    }
}

/// Does it, and returns what to print.
pub async fn run(command: Command, core: &Core) -> anyhow::Result<String> {
    let call = Call::internal("cli");
    // As `serve` does: the first admin may be made before the first start.
    core.store.migrate_up().await?;
    match command {
        Command::Create(create) => create.run(core, &call).await,
        Command::List(list) => list.run(core, &call).await,
        Command::SetPassword(SetPassword { account, password }) => {
            let user_id = account.find(core, &call).await?;
            let password = spawn_blocking(move || password.read()).await??;
            keyring::load(core, &call).await?;
            password::set(core, &call, user_id, &password).await?;
            Ok(format!(
                "set the password of {user_id}; its sessions are ended\n"
            ))
        }
        Command::Unlock(Unlock { account }) => {
            let user_id = account.find(core, &call).await?;
            keyring::load(core, &call).await?;
            users::unlock(core, &call, user_id).await?;
            Ok(format!("{user_id} may log in again\n"))
        }
        Command::Reseal => {
            keyring::load(core, &call).await?;
            let Resealed { stored, shut } = password_hash::reseal(core, &call).await?;
            let shut: Vec<_> = shut.iter().map(ToString::to_string).collect();
            ensure!(
                shut.is_empty(),
                "stored {stored} password hashes anew; {} did not open, those of {}",
                shut.len(),
                shut.join(", ")
            );
            Ok(format!("stored {stored} password hashes anew\n"))
        }
        Command::Grant(Grant { account, role }) => {
            let user_id = account.find(core, &call).await?;
            keyring::create_missing(core, &call).await?;
            users::grant(core, &call, user_id, &role).await?;
            Ok(format!("{user_id} has the role {role}\n"))
        }
    }
}

impl Create {
    async fn run(self, core: &Core, call: &Call) -> anyhow::Result<String> {
        let Self {
            email,
            username,
            display_name,
            roles,
            password,
        } = self;
        let password = spawn_blocking(move || password.read()).await??;
        let wish = users::NewUser {
            email,
            password: Some(password),
            username,
            display_name: display_name.unwrap_or_default(),
            roles: roles.into_iter().collect(),
            metadata: Metadata::default(),
        };
        keyring::load(core, call).await?;
        let user = users::create(core, call, wish, Repeatable::once()).await?;
        let Made::Now(user) = user else {
            bail!("the account was made before")
        };
        Ok(format!("created {}\n", user.id))
    }
}

impl List {
    async fn run(self, core: &Core, call: &Call) -> anyhow::Result<String> {
        let filter = UserFilter {
            email_prefix: self
                .email_prefix
                .as_deref()
                .map(Email::prefix)
                .transpose()?,
            role: self.role,
            status: self.status,
            ..UserFilter::default()
        };
        let size = PageSize::new(i32::from(PageSize::MOST))?;
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let mut conn = core.store.read(call).await?;
            let page = store::users::list(&mut conn, &filter, after, size).await?;
            found.extend(page.items);
            after = page.next;
            if after.is_none() {
                return Ok(show(&found, self.format));
            }
        }
    }
}

impl Account {
    pub(super) async fn find(&self, core: &Core, call: &Call) -> anyhow::Result<UserId> {
        let identifier = match self {
            Self::Id(id) => return Ok(*id),
            Self::Identifier(identifier) => identifier,
        };
        let mut conn = core.store.read(call).await?;
        let found = store::users::credentials(&mut conn, identifier).await?;
        Ok(found.context("there is no such account")?.user_id)
    }
}

pub(super) fn from_input(input: impl Read) -> anyhow::Result<Password> {
    // More than the longest password has, so that a longer one is refused
    // rather than cut.
    let most = Password::MOST * 4 + 3;
    let mut text = Zeroizing::new(String::with_capacity(most));
    input
        .take(u64::try_from(most)?)
        .read_to_string(&mut text)
        .context("the password cannot be read from standard input")?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    parse(line)
}

pub(super) fn from_prompt(
    mut ask: impl FnMut(&'static str) -> io::Result<String>,
) -> anyhow::Result<Password> {
    let mut ask = |prompt: &'static str| {
        ask(prompt)
            .map(Zeroizing::new)
            .context("there is no terminal to ask for a password; use --password-stdin")
    };
    let first = ask("New password: ")?;
    let password = parse(&first)?;
    let second = ask("The same again: ")?;
    ensure!(first == second, "the two passwords differ");
    Ok(password)
}

fn parse(text: &str) -> anyhow::Result<Password> {
    let password = Password::parse(text).context("the password")?;
    ensure!(
        password.length() >= Password::FEWEST,
        "the password must be at least {} characters",
        Password::FEWEST
    );
    Ok(password)
}

/// Accounts as they are printed.
pub fn show(users: &[User], format: Format) -> String {
    match format {
        Format::Table => {
            let heading = ["id", "email", "username", "status", "roles", "created"];
            let rows: Vec<_> = users.iter().map(row).collect();
            table(heading, &rows)
        }
        Format::Json => {
            let users: Value = users.iter().map(object).collect();
            format!("{users:#}\n")
        }
    }
}

fn row(user: &User) -> [String; 6] {
    let or_dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
    let roles = Some(roles(user).join(",")).filter(|roles| !roles.is_empty());
    [
        user.id.to_string(),
        or_dash(user.email.as_ref().map(Email::as_str)),
        or_dash(user.username.as_ref().map(Username::as_str)),
        user.status.as_str().to_owned(),
        or_dash(roles.as_deref()),
        seconds(user.created_at).to_string(),
    ]
}

fn object(user: &User) -> Value {
    json!({
        "id": user.id.to_string(),
        "email": user.email.as_ref().map(Email::as_str),
        "email_verified": user.email_verified,
        "username": user.username.as_ref().map(Username::as_str),
        "display_name": user.display_name.as_str(),
        "status": user.status.as_str(),
        "roles": roles(user),
        "metadata": user.metadata.labels(),
        "created_at": user.created_at.to_string(),
        "updated_at": user.updated_at.to_string(),
    })
}

fn roles(user: &User) -> Vec<&str> {
    user.roles.iter().map(RoleName::as_str).collect()
}

/// A time for people: whole seconds are enough.
pub(super) fn seconds(time: jiff::Timestamp) -> impl fmt::Display {
    jiff::Timestamp::from_second(time.as_second()).unwrap_or(time)
}
