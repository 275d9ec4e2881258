"""Where an image may change: grounders that find what a phrase names, and masks on a block's grid."""
