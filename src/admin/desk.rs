//! Where a verb is carried out: as which user, on which database, and who asked.

use super::{CONFIGURATION, FAILURE, Format, IN_USE, NOT_PERMITTED, Refusal, failed, refusal, user};
use crate::config::{Config, Environment, place};
use crate::control;
use crate::protocol::ClientId;
use crate::storage;
use crate::storage::contents::Contents;
use crate::storage::location::{Database, Location, Standing};
use crate::storage::lock::{self, DirectoryLock};
use crate::storage::owner::quoted;
use crate::storage::registry::{Event, Registry, Writer};
use crate::storage::sqlite::FILE_NAME;
use crate::storage::upkeep::Upkeep;
use crate::upkeep::Pace;
use rustix::fs::{Access, AtFlags, CWD, Mode, RenameFlags, accessat, renameat_with};
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Where the configuration of a server for the whole machine is.
const SYSTEM: &str = "/etc/sync-server";

/// How long to wait for another process that makes or migrates the database.
const PATIENCE: Duration = Duration::from_secs(5);

const PAUSE: Duration = Duration::from_millis(50);

/// An open database, and all that a verb wants to know beside it.
pub struct Desk<'a> {
    pub config: &'a Config,
    environment: &'a Environment,
    /// For whom the output is.
    pub format: Format,
    location: Location,
    storage: Arc<dyn Database>,
    /// Who asked.
    user: String,
}

impl<'a> Desk<'a> {
    /// Opens the database that a server with this configuration uses. One that does not exist is
    /// made only if `makes`; one of an older release or of the reference server is migrated.
    ///
    /// As root the process first becomes the user whose the data directory is, for good: what root
    /// made there would lock the server out.
    pub fn open(
        config: &'a Config,
        environment: &'a Environment,
        location: Location,
        format: Format,
        makes: bool,
    ) -> Result<Desk<'a>, Refusal> {
        let user = match location.directory() {
            Some(data_dir) if !makes && !data_dir.exists() => return Err(no_database(&location)),
            Some(data_dir) => enter(environment, data_dir)?,
            None => user::asking(environment),
        };
        location.directory().map_or(Ok(()), not_restoring)?;
        bring_up_to_date(config, &location, format, makes)?;
        let storage = location.open().map_err(failed)?;
        Ok(Desk { config, environment, format, location, storage, user })
    }

    /// Refuses where the database is a copy that the next run of `copy` would overwrite, or that is not whole.
    pub fn check_copy(&self, changes: bool) -> Result<(), Refusal> {
        let Some(note) = self.storage.note().map_err(failed)? else { return Ok(()) };
        let (location, original) = (&self.location, &note.original);
        let message = match note.is_finished {
            true if !changes => return Ok(()),
            true => format!(
                "{location} is a copy of {original}, and what is changed in it now would be lost with the next run of \
                 `sync-server admin copy`: change the original, or start a server on the copy first"
            ),
            false => format!(
                "{location} is a copy of {original} that is not whole: run `sync-server admin copy` to its end first"
            ),
        };
        Err(refusal(FAILURE, message))
    }

    /// Where clients are looked after.
    pub fn registry(&self) -> &dyn Registry {
        &*self.storage
    }

    /// All that the database holds.
    pub fn contents(&self) -> &dyn Contents {
        &*self.storage
    }

    /// How the database is.
    pub fn upkeep(&self) -> &dyn Upkeep {
        &*self.storage
    }

    /// The database as a whole.
    pub fn database(&self) -> &dyn Database {
        &*self.storage
    }

    /// How much time is left to others in what takes many steps.
    pub fn pace(&self) -> Pace {
        // Whoever else uses a database elsewhere cannot be seen from here.
        let is_shared = self
            .location
            .directory()
            .is_none_or(|directory| control::is_there(Some(directory), self.environment));
        if is_shared { Pace::Beside } else { Pace::Alone }
    }

    /// The directory that the database is in, where it is in one.
    pub fn data_dir(&self) -> Option<&Path> {
        self.location.directory()
    }

    /// Something that the user who asked does now, and that is not about one client.
    pub fn event(&self, action: &str) -> Event {
        event(&self.user, action, None, "")
    }

    /// Records something that is not about one client, and tells the running server.
    pub fn record(&self, action: &str, detail: &str) -> Result<(), Refusal> {
        let event = event(&self.user, action, None, detail);
        self.registry().amending(|writer| writer.record(&event)).map_err(failed)?;
        self.tell(action, detail);
        Ok(())
    }

    /// Tells the running server, if there is one, so that its log has it too.
    pub fn tell(&self, action: &str, detail: &str) {
        control::note(
            self.location.directory(),
            self.environment,
            &format!("operator {}: {action} ({detail})", self.user),
        );
    }

    /// Changes something about one client and records it, in one transaction; then tells the
    /// running server, if there is one, so that its log has it too.
    ///
    /// Where `work` gives an obstacle, it changed nothing, and nothing is recorded.
    pub fn change<T>(
        &self,
        action: &str,
        client: ClientId,
        detail: &str,
        mut work: impl FnMut(&mut dyn Writer) -> storage::Result<Option<T>>,
    ) -> Result<Option<T>, Refusal> {
        let event = event(&self.user, action, Some(client), detail);
        let obstacle = self.registry().amending(|writer| {
            let obstacle = work(writer)?;
            if obstacle.is_none() {
                writer.record(&event)?;
            }
            Ok(obstacle)
        });
        let obstacle = obstacle.map_err(failed)?;
        if obstacle.is_none() {
            let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
            let line = format!("operator {}: {action} of client {client:?}{detail}", self.user);
            control::note(self.location.directory(), self.environment, &line);
        }
        Ok(obstacle)
    }
}

/// Something that a user does now, to be recorded.
pub fn event(user: &str, action: &str, client: Option<ClientId>, detail: &str) -> Event {
    let (user, action, detail) = (user.to_owned(), action.to_owned(), detail.to_owned());
    Event { id: Uuid::now_v7(), at: now(), client, user, action, detail }
}

/// Becomes the user whose the data directory is, and makes it where it is missing; returns who asked.
pub fn enter(environment: &Environment, data_dir: &Path) -> Result<String, Refusal> {
    let user = user::asking(environment);
    // What is made here is nobody else's to read.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    if rustix::process::geteuid().is_root() {
        become_owner(data_dir)?;
    } else {
        check_user(data_dir, &data_dir.join(FILE_NAME))?;
    }
    make_directory(data_dir)?;
    Ok(user)
}

/// The time in seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Where a server with this configuration has its data. Creates nothing.
pub fn locate(config: &Config, environment: &Environment) -> Result<Location, Refusal> {
    if let Some(location) = Location::elsewhere(config).map_err(|message| refusal(CONFIGURATION, message))? {
        return Ok(location);
    }
    let data_dir = place::data_dir(config, environment).map_err(|message| refusal(CONFIGURATION, message))?;
    if place::is_personal(config, environment, &data_dir) && Path::new(SYSTEM).exists() {
        let message = format!(
            "{SYSTEM} says that a server for the whole machine is set up, but this user would look in {}: \
             run this as root or as the server's user, or name the data directory with DATA_DIR",
            data_dir.display()
        );
        return Err(refusal(NOT_PERMITTED, message));
    }
    Ok(Location::Directory(data_dir))
}

fn no_database(location: &Location) -> Refusal {
    if location.directory().is_none() {
        let message = format!(
            "{location} has no tables yet: the server makes them when it starts, and so does `sync-server admin \
             add-client`"
        );
        return refusal(FAILURE, message);
    }
    let message = format!(
        "there is no database {location} yet: the server makes it when it starts, and so does `sync-server admin \
         add-client`; if there should be one, name its directory with DATA_DIR or --data-dir"
    );
    refusal(FAILURE, message)
}

/// From here on the process is the user whose the data directory is, or will be.
fn become_owner(data_dir: &Path) -> Result<(), Refusal> {
    let (uid, gid) = match data_dir.metadata() {
        Ok(data) => (data.uid(), data.gid()),
        Err(_) => found(data_dir).map_err(|error| not_made(data_dir, &error))?,
    };
    user::become_user(uid, gid).map_err(|error| {
        let message = format!(
            "cannot become uid {uid}, whose the data directory {} is: {error}; run this as that user",
            data_dir.display()
        );
        refusal(NOT_PERMITTED, message)
    })
}

/// Decides whose a new data directory will be. Below a directory of root, where nobody else could
/// make it and nobody can put a link in its way, its first part is made here and given away.
fn found(data_dir: &Path) -> std::io::Result<(u32, u32)> {
    let (uid, gid) = user::for_new(data_dir)?;
    let missing = data_dir.ancestors().take_while(|part| part.symlink_metadata().is_err()).last();
    if let Some(first) = missing
        && first.parent().is_some_and(|above| above.metadata().is_ok_and(|above| above.uid() == 0))
    {
        give(first, uid, gid)?;
    }
    Ok((uid, gid))
}

/// Makes a directory for somebody else. It appears when it is theirs already: another verb would
/// take it for root's. Where another verb made it meanwhile, that is as good.
fn give(directory: &Path, uid: u32, gid: u32) -> std::io::Result<()> {
    let aside = directory.with_extension(format!("new-{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&aside)?;
    let given = chown(&aside, Some(uid), Some(gid))
        .and_then(|()| Ok(renameat_with(CWD, &aside, CWD, directory, RenameFlags::NOREPLACE)?));
    if given.is_err() {
        // Empty as it is.
        let _ = std::fs::remove_dir(&aside);
    }
    match given {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        given => given,
    }
}

fn make_directory(data_dir: &Path) -> Result<(), Refusal> {
    if data_dir.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
    made.map_err(|error| not_made(data_dir, &error))
}

fn not_made(data_dir: &Path, error: &std::io::Error) -> Refusal {
    refusal(FAILURE, format!("cannot make the data directory {}: {error}", data_dir.display()))
}

/// Files that another user than the server's makes beside the database would lock the server out.
pub fn check_user(data_dir: &Path, database: &Path) -> Result<(), Refusal> {
    let us = rustix::process::geteuid().as_raw();
    let Ok(directory) = data_dir.metadata() else { return Ok(()) };
    let owner = database.metadata().map_or(directory.uid(), |file| file.uid());
    let writable = accessat(CWD, data_dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_ok();
    if writable && (owner == us || !database.exists() || directory.uid() == us) {
        return Ok(());
    }
    let message = format!(
        "{} belongs to uid {owner}, and this process runs as uid {us}: run it as root, or as that user with \
         `sudo -u '#{owner}' sync-server admin …`",
        if database.exists() { quoted(database) } else { quoted(data_dir) }
    );
    Err(refusal(NOT_PERMITTED, message))
}

/// Refuses a directory into which a backup is being restored.
pub fn not_restoring(data_dir: &Path) -> Result<(), Refusal> {
    if !lock::is_restoring(data_dir) {
        return Ok(());
    }
    let holder = lock::holder(data_dir);
    let message =
        format!("{holder} restores a backup into {}: try again when it is done", data_dir.display());
    Err(refusal(IN_USE, message))
}

/// Sees to it that the database has this program's tables, as the server does when it starts.
pub fn bring_up_to_date(
    config: &Config,
    location: &Location,
    format: Format,
    makes: bool,
) -> Result<(), Refusal> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match location.standing().map_err(failed)? {
            Standing::Current => return Ok(()),
            Standing::Missing if !makes => return Err(no_database(location)),
            Standing::Missing | Standing::Older => {}
        }
        let progress = if format == Format::People { tell } else { |_: &str| () };
        match location.directory().map(DirectoryLock::take).transpose() {
            Ok(_lock) => {
                location.prepare(config.migrate, &config.migration, progress).map_err(failed)?;
            }
            Err(why) if Instant::now() >= deadline => {
                let message = format!("{why}; its database is that of an older release: restart it first");
                return Err(refusal(FAILURE, message));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn tell(text: &str) {
    if !text.is_empty() {
        eprintln!("{text}");
    }
}
