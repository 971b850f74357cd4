"""What a store and a student will cost, before anything long starts.

`embedding` and `training` measure a few batches of the real code, each in a process of its own, so that one's memory
is not counted with the other's; `memory` watches them; `estimate` is the arithmetic from there to hours and bytes.
"""
