"""Subwords as tokens, by Hugging Face's `tokenizers`."""

import numpy as np

from kattn import arguments


class Subwords:
    """A tokenizer whose tokens are frequent pieces of words.

    It is a thin face of a `tokenizers.Tokenizer`, which is its attribute `tokenizer`. It needs the
    package: `pip install tokenizers`.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.

    Raises:
        ValueError: If `tokenizer` is something else.

    Example:
        >>> texts = ["low lower lowest", "new newer newest"]
        >>> subwords = kattn.text.Subwords.train(texts, 270)
        >>> tokens = subwords.encode("lower")
        >>> subwords.decode(tokens)
        'lower'
        >>> subwords.number("<pad>"), subwords.number("<end>")
        (0, 1)

    Reference:
        Sennrich et al. 2016, sec. 3.2, https://arxiv.org/abs/1508.07909; over bytes: Radford et al.
        2019, sec. 2.2,
        https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
    """

    def __init__(self, tokenizer):
        if not hasattr(tokenizer, "encode_batch"):
            raise arguments.error(
                "`tokenizer` must be a tokenizers.Tokenizer; write Subwords.load(file) for a "
                "tokenizer.json and Subwords.train(texts, vocabulary_size) for a new one",
                tokenizer=tokenizer,
            )
        self.tokenizer = tokenizer

    @classmethod
    def train(cls, texts, vocabulary_size, *, special_tokens=("<pad>", "<end>")):
        """A new tokenizer, learnt from texts by byte-pair encoding over bytes.

        It can encode any text, as each byte is a token, too.

        Args:
            texts: Iterable of strings.
            vocabulary_size: Number of tokens at most, an integer above 256 and the number of
                special tokens.
            special_tokens: Names of tokens that no text contains. They have the first numbers.

        Returns:
            A `Subwords`.

        Raises:
            ValueError: If `vocabulary_size` leaves no room for the bytes.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        arguments.check_integers(256 + len(special_tokens), vocabulary_size=vocabulary_size)
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=list(special_tokens),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path):
        """A tokenizer from a file.

        Args:
            path: A `tokenizer.json`, as `save` and Hugging Face's libraries write it, or the folder
                that holds it.

        Returns:
            A `Subwords`.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        from tokenizers import Tokenizer

        path = arguments.local_path(path=path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"There must be a tokenizer.json; received: path={str(path)!r}")
        return cls(Tokenizer.from_file(str(path)))

    def save(self, path):
        """Writes the tokenizer to a file, which `load` reads.

        Args:
            path: Name of the file, such as "tokenizer.json".
        """
        self.tokenizer.save(str(arguments.local_path(path=path)))

    @property
    def vocabulary_size(self):
        """The number of tokens, the special ones included."""
        return self.tokenizer.get_vocab_size()

    def number(self, token):
        """The number of a token, such as "<end>".

        Args:
            token: The token as a string.

        Returns:
            An integer.

        Raises:
            ValueError: If there is no such token.
        """
        number = self.tokenizer.token_to_id(token)
        if number is None:
            raise arguments.error("`token` must be one of the vocabulary", token=token)
        return number

    def encode(self, text):
        """The tokens of a text, without special ones.

        Args:
            text: String, or a list of strings.

        Returns:
            int32 array, shape `(T,)`; for a list of strings a list of such arrays.
        """
        if isinstance(text, str):
            return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, "int32")
        found = self.tokenizer.encode_batch(list(text), add_special_tokens=False)
        return [np.array(each.ids, "int32") for each in found]

    def decode(self, tokens):
        """The text of tokens, without special ones.

        Args:
            tokens: Integers, shape `(T,)`.

        Returns:
            A string.
        """
        return self.tokenizer.decode([int(token) for token in tokens])
