"""Files to batches, by stage.

read: files to rows. records: rows to records. templates: records to text. encode: text to tokens.
packing, fitting: tokens to rows of one length. cache: packed rows, kept. mixtures, batches: rows to
arrays on devices. preview: what a model reads and is asked for.
"""
