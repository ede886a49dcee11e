//! The stores: a KubeBrain on the local disk, or several that share a PostgreSQL, which is started too if none is named, or a TiKV cluster that is
//! there already.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;
use kubewharf_testkit::postgres::Installation;

use super::component::{Orphaned, Ready, Spec};
use super::kubectl::Url;
use super::pki::Pki;
use super::{Options, free_port, own_program};

/// The database's component.
const DATABASE: &str = "postgresql";
/// The KubeBrains, where they are several.
const BRAINS: [&str; 5] = ["kubebrain-1", "kubebrain-2", "kubebrain-3", "kubebrain-4", "kubebrain-5"];

/// Where the rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Engine {
    /// On the local disk, of one KubeBrain.
    Lmdb,
    /// In a PostgreSQL that all KubeBrains share.
    Postgres,
    /// In a TiKV cluster that all KubeBrains share.
    Tikv,
}

/// Where everything is.
pub(super) struct Plan {
    folder: PathBuf,
    brains: Vec<Brain>,
    database: Option<Database>,
}

struct Brain {
    name: &'static str,
    client: Url,
    peer: Url,
}

enum Database {
    /// Named by the user, for this engine of `kubewharf brain`; and the store's name there, if it is not the usual one.
    Elsewhere { engine: &'static str, url: String, schema: Option<String> },
    /// A PostgreSQL in the cluster's folder.
    Own { port: u16, installation: Installation },
}

impl Plan {
    /// Chooses ports, which are held by the listeners until all are found.
    pub(super) fn new(options: &Options, folder: &Path) -> anyhow::Result<(Self, Vec<TcpListener>)> {
        let count = usize::from(options.brains);
        if count > 1 && options.engine == Engine::Lmdb {
            bail!("--brains={count} needs a store that they can share: --engine=postgres or --engine=tikv");
        }
        if !(1..=BRAINS.len()).contains(&count) {
            bail!("--brains={count} must be between 1 and {}", BRAINS.len());
        }
        if options.engine_url.is_some() && options.engine == Engine::Lmdb {
            bail!("--engine-url is for --engine=postgres and --engine=tikv");
        }
        if options.engine_schema.is_some() && options.engine_url.is_none() {
            bail!("--engine-schema is for a store elsewhere, which --engine-url names");
        }
        let elsewhere = |engine, url: &String| Database::Elsewhere {
            engine,
            url: url.clone(),
            schema: options.engine_schema.clone(),
        };
        let mut held = Vec::new();
        let mut port = || {
            let listener = free_port()?;
            let port = listener.local_addr()?.port();
            held.push(listener);
            anyhow::Ok(port)
        };
        let mut brains = Vec::new();
        for name in &BRAINS[..count] {
            let name = if count == 1 { "kubebrain" } else { name };
            brains.push(Brain { name, client: Url { port: port()? }, peer: Url { port: port()? } });
        }
        let database = match (options.engine, &options.engine_url) {
            (Engine::Lmdb, _) => None,
            (Engine::Postgres, Some(url)) => Some(elsewhere("postgres", url)),
            (Engine::Tikv, Some(url)) => Some(elsewhere("tikv", url)),
            (Engine::Tikv, None) => bail!(
                "--engine=tikv needs a TiKV cluster, and its PDs' addresses: --engine-url=tikv://127.0.0.1:2379. \
                 `tiup playground --mode tikv-slim` starts one there"
            ),
            (Engine::Postgres, None) => {
                let installation = Installation::find()
                    .ok_or_else(|| anyhow!("{}, or name a database with --engine-url", Installation::MISSING))?;
                Some(Database::Own { port: port()?, installation })
            }
        };
        Ok((Self { folder: folder.to_owned(), brains, database }, held))
    }

    /// What kube-apiservers are told: all of them.
    pub(super) fn urls(&self) -> String {
        self.brains.iter().map(|brain| brain.client.to_string()).collect::<Vec<_>>().join(",")
    }

    /// Whether others go on when a KubeBrain of this name ends.
    pub(super) fn is_one_of_several(&self, name: &str) -> bool {
        self.brains.len() > 1 && self.brains.iter().any(|brain| brain.name == name)
    }

    /// The database, if it is to be started here. Its data are made if there are none.
    pub(super) fn database(&self) -> anyhow::Result<Option<Spec>> {
        let Some(Database::Own { port, installation }) = &self.database else { return Ok(None) };
        let folder = self.folder.join(DATABASE);
        let data = folder.join("data");
        std::fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        if !data.join("PG_VERSION").exists() {
            installation.initialize_protected(&folder, &data, &self.password()?).with_context(|| {
                format!(
                    "can't make a database in {}; as root, it runs as another user, who must be able to get there",
                    data.display()
                )
            })?;
        }
        let only_owner = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&folder, only_owner).with_context(|| format!("can't protect {}", folder.display()))?;
        Ok(Some(Spec {
            name: DATABASE,
            program: installation.programs.join("postgres"),
            arguments: vec![
                "-D".to_owned(),
                data.display().to_string(),
                "-k".to_owned(),
                String::new(),
                "--listen_addresses=127.0.0.1".to_owned(),
                format!("--port={port}"),
            ],
            environment: Vec::new(),
            owner: installation.owner,
            orphaned: Orphaned::Stops,
            ready: Ready::Says("database system is ready to accept connections"),
        }))
    }

    /// The file with the password of the database's user, which is made if it is not there.
    fn password(&self) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(DATABASE).join("password");
        if !path.exists() {
            let random = ring::rand::generate::<[u8; 24]>(&ring::rand::SystemRandom::new());
            let random = random.map_err(|_| anyhow!("no random numbers"))?.expose();
            let password: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
            super::pki::write_secret(&path, &password)?;
        }
        Ok(path)
    }

    /// The KubeBrains.
    pub(super) fn brains(&self, pki: &Pki) -> anyhow::Result<Vec<Spec>> {
        self.brains.iter().map(|brain| self.brain(brain, pki)).collect()
    }

    fn brain(&self, brain: &Brain, pki: &Pki) -> anyhow::Result<Spec> {
        let Brain { name, client, peer } = brain;
        let mut arguments = vec![
            "brain".to_owned(),
            format!("--name={name}"),
            format!("--data-dir={}", self.folder.join("brain").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--cert-file={}", pki.store.certificate.display()),
            format!("--key-file={}", pki.store.key.display()),
            format!("--trusted-ca-file={}", pki.store_authority.display()),
            "--client-cert-auth".to_owned(),
            // kube-apiserver compacts every five minutes by itself.
            "--log-format=console".to_owned(),
        ];
        let mut environment = Vec::new();
        if let Some(database) = &self.database {
            let (engine, url) = match database {
                Database::Elsewhere { engine, url, schema } => {
                    arguments.extend(schema.iter().map(|schema| format!("--engine-schema={schema}")));
                    (*engine, url.clone())
                }
                Database::Own { port, .. } => {
                    let password = std::fs::read_to_string(self.password()?).context("can't read the password")?;
                    ("postgres", format!("postgres://postgres:{password}@127.0.0.1:{port}/postgres"))
                }
            };
            environment.push(("ETCD_ENGINE_URL", url));
            arguments.extend([
                format!("--engine={engine}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--peer-cert-file={}", pki.store.certificate.display()),
                format!("--peer-key-file={}", pki.store.key.display()),
                format!("--peer-client-cert-file={}", pki.store_client.certificate.display()),
                format!("--peer-client-key-file={}", pki.store_client.key.display()),
                format!("--peer-trusted-ca-file={}", pki.store_authority.display()),
                "--peer-client-cert-auth".to_owned(),
            ]);
        }
        Ok(Spec {
            name,
            program: own_program()?,
            arguments,
            environment,
            owner: None,
            orphaned: Orphaned::Stops,
            ready: Ready::Says("ready to serve client requests"),
        })
    }
}
