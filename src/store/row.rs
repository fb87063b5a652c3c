//! How a row of the ledger is bound to a statement and read back, made once for all tables.

use rusqlite::types::{ToSqlOutput, Value, ValueRef};

use super::record::{DeliveryState, LeaseState};
use crate::types::time::Wall;

/// A row of one table.
pub(super) trait Row: Sized {
    /// Its table.
    const TABLE: &'static str;
    /// Its columns, key first, in the order in which they are bound and read.
    const COLUMNS: &'static [&'static str];
    /// How many columns are the key.
    const KEY: usize;

    /// The values, in the order of the columns.
    fn values(&self) -> Vec<ToSqlOutput<'_>>;

    /// From the values; `Err` is the name of the column that does not hold what it should.
    fn read(row: &rusqlite::Row<'_>) -> Result<Self, &'static str>;
}

/// One value of a row.
pub(super) trait Column: Sized {
    /// For SQL.
    fn put(&self) -> ToSqlOutput<'_>;
    /// From SQL; `None` when it is of another kind.
    fn take(value: ValueRef<'_>) -> Option<Self>;
}

/// A row struct with its table, its number of key columns, and how it is bound and read.
macro_rules! row {
    (
        $(#[$doc:meta])*
        $name:ident in $table:literal by $key:literal {
            $( $(#[$field_doc:meta])* $field:ident : $kind:ty, )*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        pub struct $name {
            $( $(#[$field_doc])* pub $field: $kind, )*
        }

        impl $crate::store::row::Row for $name {
            const TABLE: &'static str = $table;
            const COLUMNS: &'static [&'static str] = &[$(stringify!($field)),*];
            const KEY: usize = $key;

            fn values(&self) -> Vec<rusqlite::types::ToSqlOutput<'_>> {
                vec![$($crate::store::row::Column::put(&self.$field)),*]
            }

            fn read(row: &rusqlite::Row<'_>) -> Result<Self, &'static str> {
                let mut at = 0;
                $(
                    let $field = row
                        .get_ref(at)
                        .ok()
                        .and_then(<$kind as $crate::store::row::Column>::take)
                        .ok_or(stringify!($field))?;
                    at += 1;
                )*
                let _: usize = at;
                Ok(Self { $($field),* })
            }
        }
    };
}
pub(super) use row;

/// `INSERT … ON CONFLICT DO UPDATE` for a table.
pub(super) fn upsert<R: Row>() -> String {
    let names = quoted(R::COLUMNS);
    let marks = vec!["?"; R::COLUMNS.len()].join(", ");
    let key = quoted(R::COLUMNS.get(..R::KEY).unwrap_or_default());
    let rest = R::COLUMNS.get(R::KEY..).unwrap_or_default();
    let update = if rest.is_empty() {
        "NOTHING".to_owned()
    } else {
        let set: Vec<String> = rest
            .iter()
            .map(|c| format!("\"{c}\" = excluded.\"{c}\""))
            .collect();
        format!("UPDATE SET {}", set.join(", "))
    };
    format!(
        "INSERT INTO \"{}\" ({names}) VALUES ({marks}) ON CONFLICT ({key}) DO {update}",
        R::TABLE
    )
}

/// `SELECT` of all columns of a table, with `rest` behind it.
pub(super) fn select<R: Row>(rest: &str) -> String {
    format!("SELECT {} FROM \"{}\" {rest}", quoted(R::COLUMNS), R::TABLE)
}

/// `DELETE` of the row with a key.
pub(super) fn delete<R: Row>() -> String {
    let key: Vec<String> = R::COLUMNS
        .iter()
        .take(R::KEY)
        .map(|c| format!("\"{c}\" = ?"))
        .collect();
    format!("DELETE FROM \"{}\" WHERE {}", R::TABLE, key.join(" AND "))
}

fn quoted(columns: &[&str]) -> String {
    let quoted: Vec<String> = columns.iter().map(|c| format!("\"{c}\"")).collect();
    quoted.join(", ")
}

impl Column for String {
    fn put(&self) -> ToSqlOutput<'_> {
        ToSqlOutput::Borrowed(ValueRef::Text(self.as_bytes()))
    }

    fn take(value: ValueRef<'_>) -> Option<Self> {
        value.as_str().ok().map(str::to_owned)
    }
}

impl Column for u64 {
    fn put(&self) -> ToSqlOutput<'_> {
        ToSqlOutput::Owned(Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX)))
    }

    fn take(value: ValueRef<'_>) -> Option<Self> {
        value.as_i64().ok().and_then(|n| Self::try_from(n).ok())
    }
}

impl Column for u32 {
    fn put(&self) -> ToSqlOutput<'_> {
        ToSqlOutput::Owned(Value::Integer(i64::from(*self)))
    }

    fn take(value: ValueRef<'_>) -> Option<Self> {
        value.as_i64().ok().and_then(|n| Self::try_from(n).ok())
    }
}

impl Column for bool {
    fn put(&self) -> ToSqlOutput<'_> {
        ToSqlOutput::Owned(Value::Integer(i64::from(*self)))
    }

    fn take(value: ValueRef<'_>) -> Option<Self> {
        match value.as_i64() {
            Ok(0) => Some(false),
            Ok(1) => Some(true),
            _ => None,
        }
    }
}

impl Column for Wall {
    fn put(&self) -> ToSqlOutput<'_> {
        ToSqlOutput::Owned(Value::Integer(self.unix_millis()))
    }

    fn take(value: ValueRef<'_>) -> Option<Self> {
        value.as_i64().ok().map(Self::from_unix_millis)
    }
}

impl<C: Column> Column for Option<C> {
    fn put(&self) -> ToSqlOutput<'_> {
        match self {
            Some(value) => value.put(),
            None => ToSqlOutput::Owned(Value::Null),
        }
    }

    fn take(value: ValueRef<'_>) -> Option<Self> {
        match value {
            ValueRef::Null => Some(None),
            value => C::take(value).map(Some),
        }
    }
}

macro_rules! words {
    ($($name:ident),*) => {$(
        impl Column for $name {
            fn put(&self) -> ToSqlOutput<'_> {
                let word = Self::ALL.iter().find(|(state, _)| state == self);
                ToSqlOutput::Borrowed(ValueRef::Text(word.map_or("", |(_, word)| word).as_bytes()))
            }

            fn take(value: ValueRef<'_>) -> Option<Self> {
                let text = value.as_str().ok()?;
                Self::ALL.iter().find(|(_, word)| *word == text).map(|(state, _)| *state)
            }
        }
    )*};
}
words!(LeaseState, DeliveryState);
