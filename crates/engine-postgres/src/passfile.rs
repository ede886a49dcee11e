//! libpq's password file: a line a password, `host:port:database:user:password`.
//!
//! It is read at each connection, so a password that was changed is used without a restart.

use std::path::PathBuf;

use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// The file. It need not exist.
pub(crate) struct PasswordFile {
    path: PathBuf,
}

impl PasswordFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The password for the one host of that configuration.
    pub(crate) fn password(&self, config: &Config) -> Option<String> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(path = %self.path.display(), %error, "the password file can't be read");
                }
                return None;
            }
        };
        let host = match config.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => config.get_hostaddrs().first().map(ToString::to_string).unwrap_or_default(),
        };
        let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
        let user = config.get_user().unwrap_or_default();
        let database = config.get_dbname().unwrap_or(user);
        find(&text, [&host, &port, database, user])
    }
}

fn find(text: &str, wanted: [&str; 4]) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields(line);
        let [asked @ .., password] = &fields[..] else { return None };
        let is_it = asked.len() == 4 && asked.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
        is_it.then(|| password.clone())
    })
}

/// The first four fields, and all the rest as the fifth; a backslash takes the next character as it is.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(next) = chars.next() {
        if next == ':' && fields.len() < 5 {
            fields.push(String::new());
            continue;
        }
        let taken = if next == '\\' { chars.next() } else { Some(next) };
        if let Some(field) = fields.last_mut() {
            field.extend(taken);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits_has_the_password() {
        let text = "# a comment:*:*:*:no\nnonsense\ndb1:5432:app:me:first\n*:*:app:me:se\\:co\\\\nd:!\n::1\n";
        assert_eq!(find(text, ["db1", "5432", "app", "me"]).as_deref(), Some("first"));
        assert_eq!(find(text, ["db2", "5432", "app", "me"]).as_deref(), Some("se:co\\nd:!"));
        assert_eq!(find(text, ["db2", "5432", "other", "me"]), None);
        assert_eq!(find(r"\:\:1:*:*:*:six", ["::1", "1", "d", "u"]).as_deref(), Some("six"));
    }

    #[test]
    fn a_file_is_asked_for_the_host_of_a_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passes");
        let file = PasswordFile::new(path.clone());
        let mut config = Config::new();
        config.host("h").user("u");
        assert_eq!(file.password(&config), None);
        std::fs::write(&path, "h:5432:u:u:secret\n").unwrap();
        assert_eq!(file.password(&config).as_deref(), Some("secret"));
    }
}
