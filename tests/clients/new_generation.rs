//! The crate `taskchampion` 3: the library inside of Taskwarrior 3.5.

use super::{Account, Device, Tasks};
use taskchampion::storage::inmemory::InMemoryStorage;
use taskchampion::{Operations, Replica, Server, ServerConfig, Status, Task};
use tokio::runtime::Runtime;
use uuid::Uuid;

pub struct NewGeneration {
    runtime: Runtime,
    replica: Replica<InMemoryStorage>,
    account: Account,
}

impl NewGeneration {
    /// An empty replica in memory.
    pub fn new(account: &Account) -> NewGeneration {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        NewGeneration {
            runtime: runtime.expect("a runtime"),
            replica: Replica::new(InMemoryStorage::new()),
            account: account.clone(),
        }
    }

    fn change(&mut self, task: Uuid, change: impl FnOnce(&mut Task, &mut Operations)) {
        self.runtime.block_on(async {
            let mut task = self.replica.get_task(task).await.expect("a read").expect("a task that exists");
            let mut operations = Operations::new();
            change(&mut task, &mut operations);
            self.replica.commit_operations(operations).await.expect("a commit");
        });
    }
}

impl Device for NewGeneration {
    fn add(&mut self, description: &str) -> Uuid {
        let task = Uuid::new_v4();
        self.runtime.block_on(async {
            let mut operations = Operations::new();
            let mut task = self.replica.create_task(task, &mut operations).await.expect("a task");
            task.set_description(description.to_owned(), &mut operations).expect("a description");
            task.set_status(Status::Pending, &mut operations).expect("a status");
            self.replica.commit_operations(operations).await.expect("a commit");
        });
        task
    }

    fn set(&mut self, task: Uuid, property: &str, value: &str) {
        let value = Some(value.to_owned());
        self.change(task, |task, operations| {
            task.set_value(property, value, operations).expect("a value");
        });
    }

    fn complete(&mut self, task: Uuid) {
        self.change(task, |task, operations| {
            task.set_status(Status::Completed, operations).expect("a status");
        });
    }

    fn delete(&mut self, task: Uuid) {
        self.change(task, |task, operations| {
            task.set_status(Status::Deleted, operations).expect("a status");
        });
    }

    fn purge(&mut self, task: Uuid) {
        self.change(task, |task, operations| task.clone().into_task_data().delete(operations));
    }

    fn tasks(&mut self) -> Tasks {
        let tasks = self.runtime.block_on(self.replica.all_task_data()).expect("the tasks");
        let properties = |task: taskchampion::TaskData| {
            task.iter().map(|(property, value)| (property.clone(), value.clone())).collect()
        };
        tasks.into_iter().map(|(uuid, task)| (uuid, properties(task))).collect()
    }

    fn sync(&mut self, avoid_snapshots: bool) -> Result<(), String> {
        let config = ServerConfig::Remote {
            url: self.account.url.clone(),
            client_id: self.account.client,
            encryption_secret: self.account.secret.clone().into_bytes(),
        };
        self.runtime.block_on(async {
            let mut server: Box<dyn Server> = config.into_server().await.expect("a valid configuration");
            self.replica.sync(&mut server, avoid_snapshots).await.map_err(|error| format!("{error:#}"))
        })
    }
}
