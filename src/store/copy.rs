//! Rows in the binary form that Postgres' COPY reads: the cheapest way into a table. The server takes rows by the page,
//! writes fewer and larger WAL records, and unpacks no arrays.

use sqlx::postgres::PgConnection;

use super::connection::Column;

/// Signature, no flags, no extension.
const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Stands where the next row would have its number of columns.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();
/// What is encoded before it is sent: the server reads it while the next is encoded, and no poll takes long.
const CHUNK_BYTES: usize = 128 * 1024;

/// Runs `sql`, a COPY … FROM STDIN (FORMAT binary), over the rows of `columns`.
pub(super) async fn load(connection: &mut PgConnection, sql: &str, columns: &[Column<'_>]) -> sqlx::Result<()> {
    let rows = columns.first().map_or(0, Column::len);
    let mut chunk = Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8);
    chunk.extend_from_slice(HEADER);
    let mut copy = connection.copy_in_raw(sql).await?;
    for row in 0..rows {
        append_row(&mut chunk, columns, row);
        if chunk.len() >= CHUNK_BYTES {
            copy.send(chunk.as_slice()).await?;
            chunk.clear();
            tokio::task::yield_now().await;
        }
    }
    chunk.extend_from_slice(&TRAILER);
    copy.send(chunk.as_slice()).await?;
    copy.finish().await?;
    Ok(())
}

/// The number of columns, then each value behind its length. No table of ours has 32,768 columns, no value 2 GiB.
fn append_row(chunk: &mut Vec<u8>, columns: &[Column<'_>], row: usize) {
    chunk.extend_from_slice(&(columns.len() as i16).to_be_bytes());
    for column in columns {
        match column {
            Column::Ints(values) => append(chunk, &values[row].to_be_bytes()),
            Column::Texts(values) => append(chunk, values[row].as_bytes()),
            Column::Bytes(values) => append(chunk, values[row]),
        }
    }
}

fn append(chunk: &mut Vec<u8>, value: &[u8]) {
    chunk.extend_from_slice(&(value.len() as i32).to_be_bytes());
    chunk.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_its_columns_each_behind_its_length() {
        let columns = [Column::Ints(vec![1, -2]), Column::Texts(vec!["", "é"]), Column::Bytes(vec![&[7], &[0, 255]])];
        let mut chunk = Vec::new();
        append_row(&mut chunk, &columns, 1);
        let expected: [&[u8]; 6] = [
            &[0, 3],
            &[0, 0, 0, 8],
            &[255, 255, 255, 255, 255, 255, 255, 254],
            &[0, 0, 0, 2],
            "é".as_bytes(),
            &[0, 0, 0, 2, 0, 255],
        ];
        assert_eq!(chunk, expected.concat());
    }
}
