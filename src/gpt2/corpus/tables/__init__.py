"""CSV and TSV files: strict records, the columns that hold text, and the text of a row."""
