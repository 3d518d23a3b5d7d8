"""Image files into the pixels that a model takes: one reader for the builder and the client.

What a model is trained and tested on and what a client sends it must be the same pixels, and the two packages do
not know each other, so what both need lies here. `preprocess.py` states what is made of an image, `formats.py`
which files are opened and how large they may be; `read.py` decodes, `fit.py` sizes and crops, `batch.py` does so
for many at once as a server gets them, `store.py` keeps the pixels in a file, `folder.py` lists what lies in a
folder, `content.py` says what a file is that is not what its name says. Needs numpy and Pillow, and nothing of
ours.

Its modules import each other relatively: in Triton's process there is no `temper`, and `backends/temper_decode`
has this very folder, by a link, as a package of its own.
"""
