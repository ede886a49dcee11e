//! One object at a time: get, update, create, delete.

use anyhow::{Context as _, Result, ensure};
use kubewharf_etcd_api::Method;

use super::Bench;
use crate::brain::keys::scatter;
use crate::brain::measure::{Measured, Turn};
use crate::brain::requests::{self, KeyValue, check_delete, check_txn};
use crate::client::Connection;
use crate::wire::field;

/// Calls before the first that counts, of a hundred that do.
const WARM_UP_PERCENT: u64 = 5;

impl Bench {
    pub(super) async fn get(&self) -> Result<Measured> {
        let warm_up = self.scale.operations * WARM_UP_PERCENT / 100;
        let get = async |turn: Turn<'_>| {
            let keys = self.objects.borrow().loaded();
            self.get_one(turn.connection, scatter(turn.number) % keys).await
        };
        self.measure(self.plan(warm_up), get).await?;
        Ok(self.measure(self.plan(self.scale.operations), get).await?.1)
    }

    /// Reads an object and checks it to the last byte: nobody else writes, so what is known is what must come.
    async fn get_one(&self, connection: &Connection, number: u64) -> Result<u64> {
        let key = self.objects.borrow().shape().key(number);
        let reply = connection.unary(Method::Range, requests::get(key.clone())).await?;
        let kv = KeyValue::read(field(&reply, 2)?.with_context(|| format!("object {number} is not there"))?)?;
        let objects = self.objects.borrow();
        let object = objects.get(number);
        ensure!(kv.key == key, "another key than was asked for");
        let (found, known) = (kv.mod_revision, object.revision);
        ensure!(found == known, "object {number} at revision {found}, not {known}");
        objects.shape().check_value(kv.value, number, object.version)?;
        Ok(1)
    }

    pub(super) async fn update(&self) -> Result<Measured> {
        let warm_up = self.scale.operations * WARM_UP_PERCENT / 100;
        let update = async |turn: Turn<'_>| {
            self.update_one(turn, 0).await?;
            Ok(1)
        };
        self.measure(self.plan(warm_up), update).await?;
        Ok(self.measure(self.plan(self.scale.operations), update).await?.1)
    }

    /// Changes one object while nothing else is asked.
    ///
    /// # Errors
    /// When the store fails or answers wrongly.
    pub async fn update_alone(&self) -> Result<()> {
        self.update_one(Turn { connection: &self.connections[0], worker: 0, number: 0 }, 0).await?;
        Ok(())
    }

    /// Changes an object that no other worker changes; returns the revision.
    pub(super) async fn update_one(&self, turn: Turn<'_>, time_ns: u64) -> Result<i64> {
        let (number, request) = {
            let objects = self.objects.borrow();
            let workers = self.scale.in_flight as u64;
            let number = scatter(turn.number) % (objects.loaded() / workers) * workers + turn.worker as u64;
            let object = objects.get(number);
            let value = objects.shape().value(number, object.version + 1, time_ns);
            (number, requests::update(objects.shape().key(number), value, object.revision))
        };
        let reply = turn.connection.unary(Method::Txn, request).await?;
        let revision = check_txn(&reply, 1)?;
        let mut objects = self.objects.borrow_mut();
        let object = objects.get_mut(number);
        ensure!(revision > object.revision, "a revision went back from {} to {revision}", object.revision);
        object.revision = revision;
        object.version += 1;
        Ok(revision)
    }

    pub(super) async fn create(&self) -> Result<Measured> {
        let first = self.objects.borrow().loaded();
        self.objects.borrow_mut().reserve(first + self.scale.operations);
        let create = async |turn: Turn<'_>| self.create_one(turn.connection, first + turn.number).await;
        Ok(self.measure(self.plan(self.scale.operations), create).await?.1)
    }

    pub(super) async fn create_one(&self, connection: &Connection, number: u64) -> Result<u64> {
        let shape = self.objects.borrow().shape().clone();
        let request = requests::create(shape.key(number), shape.value(number, 0, 0), 0);
        let reply = connection.unary(Method::Txn, request).await?;
        self.objects.borrow_mut().get_mut(number).revision = check_txn(&reply, 1)?;
        Ok(1)
    }

    /// Deletes what [`Bench::create`] made.
    pub(super) async fn delete(&self) -> Result<Measured> {
        let first = self.objects.borrow().loaded();
        let created = self.objects.borrow().existing() - first;
        ensure!(created > 0, "there is nothing to delete: the workload create makes it");
        let delete = async |turn: Turn<'_>| {
            let number = first + turn.number;
            let (key, revision) = {
                let objects = self.objects.borrow();
                (objects.shape().key(number), objects.get(number).revision)
            };
            let reply = turn.connection.unary(Method::Txn, requests::delete(key, revision)).await?;
            let deleted = check_delete(&reply)?;
            ensure!(deleted > revision, "a revision went back from {revision} to {deleted}");
            self.objects.borrow_mut().get_mut(number).revision = 0;
            Ok(1)
        };
        Ok(self.measure(self.plan(created), delete).await?.1)
    }
}
